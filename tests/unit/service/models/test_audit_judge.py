"""Errors of an audit judge name it and its setting, so that they are not taken for those of the model in service."""

from __future__ import annotations

from pathlib import Path

import pytest

from rewardserve.model.backends import LoadError
from rewardserve.service.models import audit_judge
from rewardserve.service.settings import ServeSettings


def refuse(backend, spec):
    raise LoadError(f"{spec.model} is damaged")


@pytest.mark.parametrize(
    ("audit_model", "load", "message"),
    [
        (
            "/models/judge",
            audit_judge.load_named_judge,
            "REWARD_AUDIT_MODEL=/models/judge cannot be served as the audit judge: /models/judge is damaged",
        ),
        (
            "auto",
            audit_judge.load_own_judge,
            "REWARD_AUDIT_MODEL=auto: /models/a/audit_judge, beside the model, cannot be served as the audit judge: "
            "/models/a/audit_judge is damaged",
        ),
    ],
)
def test_a_judge_that_cannot_be_loaded_is_named_with_its_setting(monkeypatch, audit_model, load, message):
    monkeypatch.setattr(audit_judge, "load", refuse)
    monkeypatch.setattr(audit_judge, "find_audit_judge", lambda model: Path(model) / "audit_judge")
    with pytest.raises(audit_judge.AuditJudgeError) as refused:
        load(ServeSettings(model="/models/a", audit_model=audit_model, _cli_parse_args=[]))
    assert str(refused.value) == message

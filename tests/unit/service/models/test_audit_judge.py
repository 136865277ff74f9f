"""Errors of an audit judge name it and its setting, so that they are not taken for those of the model in service."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from pydantic_settings import SettingsError

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


@pytest.mark.parametrize("calibration", [None, "fitted"])
def test_a_judge_that_cannot_be_measured_is_closed(monkeypatch, calibration):
    """A file of canaries may have become invalid since the server started."""
    judge = SimpleNamespace(scorer=Mock(), calibration=calibration, identity=SimpleNamespace(n_parameters=1))
    monkeypatch.setattr(audit_judge, "load", lambda backend, spec: judge)
    monkeypatch.setattr(ServeSettings, "read_canaries", Mock(side_effect=SettingsError))
    with pytest.raises(SettingsError if calibration else audit_judge.AuditJudgeError):
        audit_judge.load_named_judge(ServeSettings(audit_model="/models/judge", _cli_parse_args=[]))
    judge.scorer.close.assert_called_once_with()

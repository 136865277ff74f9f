"""The state of runs is used again only under the settings and the audit judge that it was measured with."""

from __future__ import annotations

from types import SimpleNamespace

from rewardserve.service.admission import Admission
from rewardserve.service.clock import MonotonicClock
from rewardserve.service.models.audit_judge import LoadedJudge
from rewardserve.service.models.shared_resources import create_shared_resources
from rewardserve.service.observability.metrics import Metrics
from rewardserve.service.settings import ServeSettings


def settings_digest(folder, judge=None):
    """The digest with this judge beside the model."""
    settings, clock = (
        ServeSettings(backend="echo", model="echo", audit_model="auto", _cli_parse_args=[]),
        MonotonicClock(),
    )
    admission = Admission(1000, 100_000, clock)
    resources = create_shared_resources(settings, admission, Metrics(), clock, state_folder=folder, own_judge=judge)
    return resources.state_keeper._settings


def judge(contract, calibration="c"):
    return LoadedJudge(SimpleNamespace(contract=SimpleNamespace(digest=contract), calibration_digest=calibration))


def test_another_judge_beside_the_same_model_is_another_measure(tmp_path):
    judges = (None, judge("a"), judge("b"), judge("a", "d"))
    assert len({settings_digest(tmp_path, each) for each in judges}) == len(judges)
    assert settings_digest(tmp_path, judge("a")) == settings_digest(tmp_path, judge("a"))

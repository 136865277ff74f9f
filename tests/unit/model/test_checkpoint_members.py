"""A checkpoint whose heads are members of an ensemble is served as the ensemble of as many models is."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from rewardserve.model.backends import LoadedModel
from rewardserve.model.calibration import Calibration, HeadCalibration
from rewardserve.model.reward import EnsembleMember, RewardSettings, build_pipeline
from rewardserve.model.reward.checkpoint_members import head_of_members

HEADS = (("1/score", 0.4), ("2/score", 0.6))
FITTED = Calibration(
    0.3, 1.2, heads=(HeadCalibration("1/score", 0.5, 2.0, 1.5), HeadCalibration("2/score", -1.0, 0.5, 0.7))
)
SCORES = [{"1/score": 2.5, "2/score": -1.25}, {"1/score": 0.5, "2/score": 1.0}]


def loaded(heads, calibration):
    return LoadedModel(SimpleNamespace(name="model", heads=heads), None, None, None, None, calibration)


@pytest.mark.parametrize("calibration", [FITTED, None])
def test_its_rewards_and_spread_are_those_of_an_ensemble_of_two_models(calibration):
    apart = [
        EnsembleMember(name, ((name, 1.0),), Calibration(mean, std, temperature) if calibration else None)
        for name, mean, std, temperature in [("1/score", 0.5, 2.0, 1.5), ("2/score", -1.0, 0.5, 0.7)]
    ]
    found = build_pipeline(loaded(HEADS, calibration).ensemble_members, RewardSettings())
    wanted = build_pipeline(apart, RewardSettings())
    assert found.combination.method == ("softmin" if calibration else "mean")
    for heads in SCORES:
        assert found.one(heads) == wanted.one(heads)
        assert found.one(heads).spread > 0


@pytest.mark.parametrize("heads", [("score",), ("1/score",), ("a", "b"), ("1/a", "2/b"), ("0/a", "1/a"), ("1/a", "a")])
def test_other_heads_are_no_members(heads):
    assert head_of_members(heads) is None
    (whole,) = loaded(tuple((name, 1.0) for name in heads), FITTED).ensemble_members
    assert (whole.name, whole.calibration) == ("model", FITTED)

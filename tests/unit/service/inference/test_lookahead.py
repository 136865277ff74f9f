"""The reward that continuations leave to a sample is a number, or an error of that sample."""

from __future__ import annotations

import pytest

from rewardserve.model.conversation import EmptyResponse, Message, Sample
from rewardserve.model.reward import Reward
from rewardserve.service.errors import LookaheadFailed, PolicyFailed, ScoreNotFinite
from rewardserve.service.inference.lookahead import with_lookahead

SAMPLE = Sample(prompt="a", response="b", lookahead=((Message("assistant", "c"),),))


def rewarded(value):
    return Reward(value, value, changes=(value,))


def test_the_change_is_kept_beside_the_reward():
    reward = with_lookahead(SAMPLE, rewarded(1.0), [rewarded(-2.0), rewarded(3.0)])
    assert (reward.value, reward.lookahead, reward.raw, reward.changes) == (-2.0, -3.0, 1.0, (1.0,))


@pytest.mark.parametrize("error", [EmptyResponse(), PolicyFailed("the policy replied with the status 500")])
def test_the_first_continuation_without_a_reward_names_its_reason(error):
    failed = with_lookahead(SAMPLE, rewarded(1.0), [rewarded(0.0), error, error])
    assert isinstance(failed, LookaheadFailed)
    assert failed.details == {"index": 1, "reason": error.code}
    assert failed.message == f"continuation 1: {error.message}"


def test_a_change_that_no_float_holds_is_no_reward():
    assert isinstance(with_lookahead(SAMPLE, rewarded(1.7e308), [rewarded(-1.7e308)]), ScoreNotFinite)

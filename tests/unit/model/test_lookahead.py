"""The reward of a sample with continuations lies between the least and the largest of all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardserve.model.conversation import InvalidLookahead, Message, Sample
from rewardserve.model.reward import Reward, combine_lookahead
from rewardserve.service.review.capture import stages_of

REWARDS = st.floats(-1e308, 1e308)


@pytest.mark.parametrize(
    ("by", "value"), [("min", -1.0), ("mean", 1.25), (0.0, -1.0), (1.0, 4.0), (0.5, 1.0), (0.25, 0.0 - 0.25 * 1.0)]
)
def test_by_hand(by, value):
    assert combine_lookahead(2.0, [4.0, -1.0, 0.0], by) == pytest.approx(value)


@given(REWARDS, st.lists(REWARDS, max_size=16), st.sampled_from(["min", "mean"]) | st.floats(0, 1))
def test_it_is_bounded_by_the_rewards_and_does_not_depend_on_their_order(own, later, by):
    value = combine_lookahead(own, later, by)
    assert min(own, *later, own) <= value <= max(own, *later, own)
    assert combine_lookahead(own, later[::-1], by) == value


def test_no_continuation_leaves_the_reward():
    assert [combine_lookahead(0.3, [], by) for by in ("min", "mean", 0.5)] == [0.3] * 3


@pytest.mark.parametrize(
    "fields", [{"text": "a"}, {"input_ids": (1, 2)}, {"prompt": "a", "response": "b", "lookahead": ((),)}]
)
def test_a_continuation_needs_turns_before_it_and_in_it(fields):
    with pytest.raises(InvalidLookahead):
        Sample(**{"lookahead": ((Message("assistant", "c"),),), **fields})


def test_the_stages_of_a_captured_sample_add_up_to_its_reward():
    reward = Reward(2.0, -0.5, changes=(1.0, -0.5), lookahead=-1.0)
    stages = stages_of(reward, ["combined", "shape"])
    assert stages == {"combined": 1.0, "shape": -0.5, "lookahead": -1.0}
    assert sum(stages.values()) == reward.value
    assert reward.score == 0.0
    assert stages_of(reward._replace(lookahead=None), ["combined", "shape"]) == {"combined": 1.0, "shape": -0.5}

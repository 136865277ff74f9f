"""Continuations of a sample: the samples to score for them, and the reward that they leave to it.

Decides; `policy_client` asks for turns that are missing. Knows nothing of batches or HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

from rewardserve.model.conversation import Message, Sample, SampleError
from rewardserve.model.reward import Reward, combine_lookahead
from rewardserve.service.errors import Failure, LookaheadFailed, RowFailed, ScoreNotFinite

Continuation = Sample | SampleError | RowFailed
"""A conversation to score, or the reason why there is none."""


def turns_after(sample: Sample, continuation: Sequence[Message]) -> tuple[Message, ...]:
    """The whole conversation: the sample and the turns after it. Raise `SampleError`."""
    return (*sample.conversation(), *continuation)


def lacks_answer(continuation: Sequence[Message]) -> bool:
    """Whether the continuation ends before a turn of the assistant, which the policy would write."""
    return continuation[-1].role != "assistant"


def to_score(sample: Sample, turns: tuple[Message, ...], *, is_cut: bool = False) -> Sample:
    """The sample of a whole conversation, read as the sample that it continues."""
    return Sample(
        messages=turns, finish_reason="length" if is_cut else "stop", options=sample.options, tools=sample.tools
    )


def with_lookahead(
    sample: Sample, own: Reward, later: Sequence[Reward | SampleError | RowFailed]
) -> Reward | RowFailed:
    """The reward of a sample with continuations; without the reward of any of them there is none."""
    for i, each in enumerate(later):
        if not isinstance(each, Reward):
            reason = Failure.of(each)
            return LookaheadFailed(f"continuation {i}: {reason.message}", index=i, reason=reason.code)
    value = combine_lookahead(
        own.value, [each.value for each in later if isinstance(each, Reward)], sample.lookahead_reward
    )
    change = value - own.value
    if not isfinite(change):
        return ScoreNotFinite("the change by the continuations of this sample is infinite in float64")
    return own._replace(value=value, lookahead=change)

"""A captured sample as it was sent, to be scored again."""

from __future__ import annotations

from rewardserve.model.conversation import FinishReason, Message, Sample
from rewardserve.service.review.records import SampleRecord


def sample_of(record: SampleRecord) -> Sample:
    """The sample of a record: a conversation, or rendered text where the client had rendered it."""
    finish_reason: FinishReason = "length" if record.missing_end else "stop"
    if isinstance(record.prompt, str):
        return Sample(
            text=record.prompt + record.response, n_prompt_chars=len(record.prompt), finish_reason=finish_reason
        )
    turns = (*(Message(turn.role, turn.content) for turn in record.prompt), Message("assistant", record.response))
    return Sample(messages=turns, finish_reason=finish_reason)

"""`POST /slime`: slime's remote reward model, one sample a request.

slime takes the whole JSON of the reply as the reward: a bare number, or, with `?reward_key=NAME` in the URL and
`--reward-key NAME` in slime, an object with the reward under that name (`slime/rollout/rm_hub`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar

import msgspec

from rewardserve.model.conversation import SCORE_EMPTY_OPTIONS, Sample
from rewardserve.service.api.dialects.dialect import (
    BodyFormat,
    Dialect,
    ModelName,
    ScoredRequest,
    sample_from_pair,
    sample_or_error,
    task_of_label,
)
from rewardserve.service.api.dialects.turns import turns_of
from rewardserve.service.api.field_docs import CHECKPOINT, PROMPT, RESPONSE, doc
from rewardserve.service.api.schemas.record import ReplyRecord, with_fields
from rewardserve.service.models.runtime import ModelRuntime
from rewardserve.service.scoring import SampleOrError


class SlimeRequest(msgspec.Struct, frozen=True, gc=False):
    """slime's fields."""

    prompt: Annotated[str | list[dict[str, Any]], doc("a text, rendered or plain, or a list of messages", PROMPT)]
    response: Annotated[str, doc("the response to score", RESPONSE)]
    label: Annotated[
        Any, doc("any value; an object with `task` or `data_source` names the task of the sample", {"task": "math"})
    ] = None
    model: ModelName = None


class KeyedReply(ReplyRecord, frozen=True, gc=False):
    """The reply to a request with `reward_key`: the reward is one more field, with that name."""

    FURTHER_FIELDS: ClassVar[Mapping[str, Any] | None] = {
        "type": "number",
        "description": "the reward, under the name in `reward_key`",
    }

    model: Annotated[str, doc("name of the model", CHECKPOINT)]
    raw: Annotated[float, doc("score of the value head, before the reward pipeline", 1.93)]
    normalized: Annotated[float | None, doc("normalised score; null without a calibration", 0.52)]
    capped: Annotated[bool, doc("whether a cap changed the reward", False)]
    flags: Annotated[Sequence[str], doc("trip wires that match the sample", ["repetition"])]
    truncated: Annotated[bool, doc("whether the prompt was cut from the left", False)]


def _to_samples(body: SlimeRequest, runtime: ModelRuntime) -> list[SampleOrError]:
    if isinstance(body.prompt, str):
        return [sample_from_pair(body.prompt, body.response, runtime)]
    prompt = body.prompt
    return [
        sample_or_error(lambda: Sample(prompt=turns_of(prompt), response=body.response, options=SCORE_EMPTY_OPTIONS))
    ]


def _to_reply(_body: SlimeRequest, scored_request: ScoredRequest) -> Any:
    (number,) = scored_request.scores
    key = scored_request.options.get("reward_key")
    if key is None:
        return number
    (result,) = scored_request.results
    reward = result.reward
    assert reward is not None
    record = KeyedReply(
        scored_request.model, reward.raw, reward.normalized, reward.is_capped, result.flags, result.truncated
    )
    return with_fields(record, {key: number})


_SLIME = BodyFormat(
    text_fields=("prompt", "response"),
    body=SlimeRequest,
    to_samples=_to_samples,
    to_reply=_to_reply,
    replies=(float, KeyedReply),
    tasks=lambda body: (task_of_label(body.label),),
)

SLIME = Dialect(
    path="/slime",
    clients="slime",
    body_formats=(_SLIME,),
    score_kind="reward",
    example_reply=0.41,
    options={"reward_key": frozenset()},
    reserved_values={"reward_key": frozenset(KeyedReply.__struct_fields__)},
)

"""`POST /slime`: slime's remote reward model, one sample a request.

The whole JSON body becomes the sample's reward there: a bare number, or, with `?reward_key=NAME` here and
`--reward-key NAME` there, an object that holds it under that name (`slime/rollout/rm_hub`).
"""

from __future__ import annotations

from typing import Any

import msgspec

from rewardserve.model.conversation import SCORE_EMPTY_OPTIONS, Sample
from rewardserve.service.api.dialects.dialect import Answered, Dialect, Form, sample_of, spoken
from rewardserve.service.api.dialects.turns import turns_of
from rewardserve.service.models.active_models import Served
from rewardserve.service.scoring import Asked


class SlimeRequest(msgspec.Struct, frozen=True, gc=False):
    """slime's fields."""

    prompt: str | list[dict[str, Any]]
    response: str
    model: str | None = None


_FACTS = ("model", "raw", "normalized", "capped", "flags", "truncated")
"""What a reply with a `reward_key` has beside the number."""


def _ask(body: SlimeRequest, served: Served) -> list[Asked]:
    if isinstance(body.prompt, str):
        return [spoken(body.prompt, body.response, served)]
    prompt = body.prompt
    return [sample_of(lambda: Sample(prompt=turns_of(prompt), response=body.response, options=SCORE_EMPTY_OPTIONS))]


def _answer(_body: SlimeRequest, answered: Answered) -> Any:
    (number,) = answered.numbers
    key = answered.options.get("reward_key")
    if key is None:
        return number
    (result,) = answered.results
    reward = result.reward
    assert reward is not None
    values = (
        answered.model,
        reward.raw,
        reward.normalized,
        reward.is_capped,
        list(result.flags),
        result.truncated,
    )
    return {**dict(zip(_FACTS, values, strict=True)), key: number}


_SLIME = Form(
    texts=("prompt", "response"),
    body=SlimeRequest,
    ask=_ask,
    answer=_answer,
    unread=frozenset({"label"}),
)

SLIME = Dialect(
    path="/slime",
    callers="slime",
    forms=(_SLIME,),
    number="reward",
    options={"reward_key": frozenset()},
    taken={"reward_key": frozenset(_FACTS)},
)

"""`POST /verify`: a resources server of NeMo-Gym, one episode a request, in the shapes of OpenAI's Responses.

The reply is the request with `reward`, `reward_components` and `mask_sample` beside it (`nemo_gym/base_resources_server`).
Gym demands a number even where there is none. An episode that cannot be scored is masked, and named a failure in the way
that keeps it out of Gym's results; the number beside the mask is the lowest that this server gives, so that an agent which
looks at no mask cannot gain by failing. Where there is no lowest, the request is refused.
"""

from __future__ import annotations

from typing import Any

from model.conversation import SCORES_EMPTY, FinishReason, InvalidMessages, Message, Sample
from service.api.dialects.dialect import Answered, Dialect, number_of, refused_for, sample_of
from service.api.dialects.turns import text_of, turns_of
from service.api.stage import Served
from service.errors import Failure, InvalidRequest, SampleRefused
from service.scoring import Asked, Scored

Body = dict[str, Any]
"""Echoed as it came, so it is read as it came."""

_FAILURE_CLASS = "_ng_failure_class"
_NOT_SAID = frozenset({"reasoning"})
"""Output that is not for the user, and was not there when the reward model was trained."""


def _ask(body: Body, _served: Served) -> list[Asked]:
    asked, response = body.get("responses_create_params"), body.get("response")
    if not isinstance(asked, dict) or not isinstance(response, dict):
        raise InvalidRequest("send responses_create_params and response, objects both", field="response")
    finish: FinishReason = "length" if response.get("incomplete_details") else "stop"
    return [sample_of(lambda: _sample(asked, response, finish))]


def _sample(asked: dict[str, Any], response: dict[str, Any], finish: FinishReason) -> Sample:
    before = _before(asked)
    messages = (*before, *_said(response.get("output"), len(before)))
    return Sample(messages=messages, finish_reason=finish, terms=SCORES_EMPTY)


def _before(asked: dict[str, Any]) -> tuple[Message, ...]:
    """What the policy was given."""
    given, instructions = asked.get("input"), asked.get("instructions")
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list):
        raise InvalidMessages("input is neither a text nor a list of messages")
    system = (Message("system", instructions),) if isinstance(instructions, str) and instructions else ()
    return (*system, *turns_of([_message(i, item) for i, item in enumerate(given)]))


def _said(output: object, n_before: int) -> tuple[Message, ...]:
    """What the policy answered: messages one after the other are one turn."""
    if not isinstance(output, list):
        raise InvalidMessages("output is no list")
    items = [item for item in output if not (isinstance(item, dict) and item.get("type") in _NOT_SAID)]
    texts = [
        text_of(n_before + i, _message(n_before + i, item, "assistant").get("content")) for i, item in enumerate(items)
    ]
    return (Message("assistant", "\n\n".join(texts)),)


def _message(index: int, item: object, role: str | None = None) -> dict[str, Any]:
    if not isinstance(item, dict) or item.get("type", "message") != "message":
        raise InvalidMessages(f"item {index} is no message: only text is scored, no calls of tools", index=index)
    if role is not None and item.get("role", role) != role:
        raise InvalidMessages(f"item {index} of the answer is not the {role}'s", index=index)
    return item


def _answer(body: Body, answered: Answered) -> Body:
    (result,) = answered.results
    if result.failure is not None:
        return {**body, **_masked(result.failure, answered)}
    return {
        **body,
        "reward": number_of(0, result, answered.number),
        "reward_components": _components(result, answered),
        "mask_sample": False,
    }


def _masked(failure: Failure, answered: Answered) -> Body:
    lowest = answered.served.pipeline.cap_low if answered.number == "reward" else None
    refused = refused_for(0, failure)
    if lowest is None or not isinstance(refused, SampleRefused):
        raise refused
    return {
        "reward": lowest,
        "reward_components": {},
        "mask_sample": True,
        _FAILURE_CLASS: f"reward_{failure.code}",
        "error": {"code": failure.code, "message": failure.message, **failure.details},
    }


def _components(result: Scored, answered: Answered) -> dict[str, float]:
    """The heads by name where there are several, else the raw score: the same keys for every episode."""
    assert result.reward is not None
    heads = answered.served.details.heads
    return {name: value for name, value in (result.heads or {}).items() if name in heads} or {"raw": result.reward.raw}


VERIFY = Dialect(
    path="/verify",
    callers="NeMo-Gym",
    body=Body,
    ask=_ask,
    answer=_answer,
    number="reward",
)

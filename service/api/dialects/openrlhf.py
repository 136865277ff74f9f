"""`POST /get_reward`: OpenRLHF's remote reward model, and align-anything's, told apart by their fields.

OpenRLHF sends the whole conversation as decoded text, one sample a request, and empty lists to all URLs but the first
(`openrlhf/utils/agent.py`). Every value of `extra_logs` becomes a tensor there, so it holds numbers only, and the same
keys for every sample. align-anything sends prompts and responses apart and reads `rewards`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from model.conversation import SCORES_EMPTY, Sample
from service.api.dialects.dialect import Answered, Dialect, spoken
from service.api.stage import Served
from service.errors import InvalidRequest
from service.scoring import Asked, Scored

_PATIENCE_S = 60.0
"""OpenRLHF gives up after five tries a second apart, align-anything after three at once; they wait for 180 and 100 s."""


class GetRewardRequest(msgspec.Struct, frozen=True, gc=False):
    """Both callers' fields."""

    query: list[str] | None = None
    prompts: list[str] | None = None
    responses: list[str] | None = None
    model: str | None = None


def _ask(body: GetRewardRequest, served: Served) -> list[Asked]:
    if body.query is not None:
        return [_rendered(query, prompt) for query, prompt in zip(body.query, _prompts(body, body.query), strict=True)]
    if body.responses is None or body.prompts is None:
        raise InvalidRequest("send query, a list of texts, or prompts and responses", field="query")
    if len(body.prompts) != len(body.responses):
        raise InvalidRequest(
            "prompts and responses differ in number",
            field="responses", n_prompts=len(body.prompts), n_responses=len(body.responses),
        )  # fmt: skip
    return [spoken(p, r, served) for p, r in zip(body.prompts, body.responses, strict=True)]


def _prompts(body: GetRewardRequest, queries: Sequence[str]) -> Sequence[str]:
    return body.prompts if body.prompts is not None and len(body.prompts) == len(queries) else [""] * len(queries)


def _rendered(query: str, prompt: str) -> Sample:
    """`query` is the prompt and the response decoded from ids; where the prompt's text did not survive, it is not known."""
    return Sample(
        text=query, n_prompt_chars=len(prompt) if prompt and query.startswith(prompt) else None, terms=SCORES_EMPTY
    )


def _answer(body: GetRewardRequest, answered: Answered) -> dict[str, Any]:
    numbers = answered.numbers
    if body.query is None:
        return {"rewards": numbers}
    return {"rewards": numbers, "scores": numbers, "extra_logs": _logs(answered) if numbers else {}}


def _logs(answered: Answered) -> dict[str, list[float]]:
    logs = {
        "raw_reward": [_raw(result) for result in answered.results],
        "capped": [float(result.reward is not None and result.reward.is_capped) for result in answered.results],
        "flagged": [float(bool(result.flags)) for result in answered.results],
        "truncated": [float(result.truncated) for result in answered.results],
    }
    if answered.served.pipeline.normalizes:
        logs["normalized_reward"] = [_normalized(result) for result in answered.results]
    return logs


def _raw(result: Scored) -> float:
    assert result.reward is not None
    return result.reward.raw


def _normalized(result: Scored) -> float:
    assert result.reward is not None
    assert result.reward.normalized is not None
    return result.reward.normalized


GET_REWARD = Dialect(
    path="/get_reward",
    callers="OpenRLHF, align-anything",
    body=GetRewardRequest,
    ask=_ask,
    answer=_answer,
    number="reward",
    patience_s=_PATIENCE_S,
    unread=frozenset({"labels", "golden_response", "golden_responses"}),
    model=lambda body: body.model,
)

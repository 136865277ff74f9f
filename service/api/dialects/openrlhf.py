"""`POST /get_reward`: the remote reward models of OpenRLHF and align-anything, distinguished by their fields.

OpenRLHF sends the whole conversation as decoded text, one sample a request, and empty lists to all URLs but the first
(`openrlhf/utils/agent.py`). It converts every value of `extra_logs` to a tensor, so these are numbers, with the same
keys for every sample. align-anything sends prompts and responses in separate lists and reads `rewards`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, UnsetType

from rewardserve.model.conversation import SCORE_EMPTY_OPTIONS, Sample
from rewardserve.service.api.dialects.dialect import (
    BodyFormat,
    Dialect,
    ModelName,
    ScoredRequest,
    sample_from_pair,
    task_of_label,
)
from rewardserve.service.api.field_docs import PROMPT, RENDERED, RESPONSE, doc
from rewardserve.service.api.schemas.record import ReplyRecord
from rewardserve.service.errors import InvalidRequest
from rewardserve.service.models.runtime import ModelRuntime
from rewardserve.service.scoring import SampleOrError, SampleResult

_QUEUE_TIMEOUT_S = 60.0
"""OpenRLHF stops after five attempts at intervals of 1 s, align-anything after three without a pause; their timeouts are 180 and
100 s."""


class QueryRequest(msgspec.Struct, frozen=True, gc=False):
    """OpenRLHF's fields."""

    query: Annotated[list[str], doc("whole conversations, decoded with special tokens (OpenRLHF)", [RENDERED])]
    prompts: Annotated[
        list[str] | None, doc("the prompts of query, in the same order; null or empty: unknown", [PROMPT])
    ] = None
    labels: Annotated[
        Any, doc("any values, one a query; an object with `task` or `data_source` names the task of the sample", ["4"])
    ] = None
    model: ModelName = None


class ResponsesRequest(msgspec.Struct, frozen=True, gc=False):
    """align-anything's fields."""

    prompts: Annotated[list[str], doc("the prompts of responses, in the same order (align-anything)", [PROMPT])]
    responses: Annotated[list[str], doc("responses to prompts (align-anything)", [RESPONSE])]
    model: ModelName = None


class RewardLogs(ReplyRecord, frozen=True, gc=False):
    """What OpenRLHF logs: numbers, one a sample. Without samples there are none."""

    raw_reward: Annotated[
        list[float] | UnsetType, doc("scores of the value head, before the reward pipeline", [1.93])
    ] = UNSET
    capped: Annotated[list[float] | UnsetType, doc("1 where a cap changed the reward, else 0", [0.0])] = UNSET
    flagged: Annotated[list[float] | UnsetType, doc("1 where a trip wire matches the sample, else 0", [0.0])] = UNSET
    truncated: Annotated[list[float] | UnsetType, doc("1 where the prompt was cut, else 0", [0.0])] = UNSET
    normalized_reward: Annotated[
        list[float] | UnsetType, doc("normalised scores; only where the pipeline normalises", [0.52])
    ] = UNSET


class QueryReply(ReplyRecord, frozen=True, gc=False):
    """OpenRLHF's reply."""

    rewards: Annotated[list[float], doc("rewards to train on, in order", [0.41])]
    scores: Annotated[list[float], doc("the numbers of `rewards`, under a second name", [0.41])]
    extra_logs: Annotated[RewardLogs, doc("numbers that OpenRLHF logs", {"raw_reward": [1.93], "capped": [0.0]})]


class ResponsesReply(ReplyRecord, frozen=True, gc=False):
    """align-anything's reply."""

    rewards: Annotated[list[float], doc("rewards to train on, in order", [0.41])]


def _query_samples(body: QueryRequest, _runtime: ModelRuntime) -> list[SampleOrError]:
    prompts = body.prompts or [""] * len(body.query)
    _check_number("query", len(body.query), "prompts", len(prompts))
    return [_rendered(query, prompt) for query, prompt in zip(body.query, prompts, strict=True)]


def _response_samples(body: ResponsesRequest, runtime: ModelRuntime) -> list[SampleOrError]:
    _check_number("prompts", len(body.prompts), "responses", len(body.responses))
    return [sample_from_pair(p, r, runtime) for p, r in zip(body.prompts, body.responses, strict=True)]


def _check_number(first: str, n_first: int, second: str, n_second: int) -> None:
    if n_first != n_second:
        raise InvalidRequest(
            f"{first} and {second} must have the same length",
            field=second,
            **{f"n_{first}": n_first, f"n_{second}": n_second},
        )


def _rendered(query: str, prompt: str) -> Sample:
    """Build the sample of a decoded prompt and response. The end of the prompt is unknown if `query` does not begin with it."""
    return Sample(
        text=query,
        n_prompt_chars=len(prompt) if prompt and query.startswith(prompt) else None,
        options=SCORE_EMPTY_OPTIONS,
    )


def _tasks_of_labels(body: QueryRequest) -> Sequence[str | None]:
    """The tasks that the labels name; none where they are not one a query."""
    if not isinstance(body.labels, list) or len(body.labels) != len(body.query):
        return ()
    return [task_of_label(label) for label in body.labels]


def _query_reply(_body: QueryRequest, scored_request: ScoredRequest) -> QueryReply:
    numbers = scored_request.scores
    return QueryReply(numbers, numbers, _logs(scored_request) if numbers else RewardLogs())


def _responses_reply(_body: ResponsesRequest, scored_request: ScoredRequest) -> ResponsesReply:
    return ResponsesReply(scored_request.scores)


def _logs(scored_request: ScoredRequest) -> RewardLogs:
    results, normalizes = scored_request.results, scored_request.runtime.pipeline.normalizes
    return RewardLogs(
        raw_reward=[_raw(result) for result in results],
        capped=[float(result.reward is not None and result.reward.is_capped) for result in results],
        flagged=[float(bool(result.flags)) for result in results],
        truncated=[float(result.truncated) for result in results],
        normalized_reward=[_normalized(result) for result in results] if normalizes else UNSET,
    )


def _raw(result: SampleResult) -> float:
    assert result.reward is not None
    return result.reward.raw


def _normalized(result: SampleResult) -> float:
    assert result.reward is not None
    assert result.reward.normalized is not None
    return result.reward.normalized


_QUERY = BodyFormat(
    text_fields=("query",),
    body=QueryRequest,
    to_samples=_query_samples,
    to_reply=_query_reply,
    replies=(QueryReply,),
    tasks=_tasks_of_labels,
    may_be_empty=True,
)

_RESPONSES = BodyFormat(
    text_fields=("prompts", "responses"),
    body=ResponsesRequest,
    to_samples=_response_samples,
    to_reply=_responses_reply,
    replies=(ResponsesReply,),
    ignored_fields=frozenset({"golden_response", "golden_responses"}),
)

GET_REWARD = Dialect(
    path="/get_reward",
    clients="OpenRLHF, align-anything",
    body_formats=(_QUERY, _RESPONSES),
    score_kind="reward",
    example_reply={"rewards": [0.41], "scores": [0.41], "extra_logs": {"raw_reward": [1.93], "capped": [0.0]}},
    queue_timeout_s=_QUEUE_TIMEOUT_S,
)

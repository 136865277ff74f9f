"""Build and encode replies. Their records are in `schemas`, which the OpenAPI document describes too."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from itertools import islice
from typing import Any

import msgspec
from msgspec import UNSET
from starlette.responses import Response

from rewardserve.service.api.requests import ApprovalIn, repeats_of_taken
from rewardserve.service.api.schemas.errors import ErrorOut, error_out
from rewardserve.service.api.schemas.scoring import (
    ApprovalOut,
    ApprovalsReply,
    CompareReply,
    ComparisonOut,
    ResultOut,
    ScoreReply,
    TimingOut,
    UsageOut,
)
from rewardserve.service.errors import Failure
from rewardserve.service.models.runtime import ModelRuntime, ResultFields
from rewardserve.service.scoring import ComparisonResult, SampleResult

_encoder = msgspec.json.Encoder()
_JSON = "application/json"


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Build a response in ASCII, so that even a lone surrogate in an id is returned unchanged. Raise ValueError for NaN."""
    text = json.dumps(msgspec.to_builtins(content), allow_nan=False, separators=(",", ":"))
    return Response(text, status_code=status, headers=headers, media_type=_JSON)


def info_response(content: Any) -> Response:
    """Build a response with numbers for display, not for training: non-finite numbers become null."""
    return _fast_response(content, 0.0)


def page_response(content: Any) -> Response:
    """Build a response as `info_response` does, with a line for each field, for readers."""
    return Response(msgspec.json.format(_encoder.encode(content), indent=2), media_type=_JSON)


def score_reply(runtime: ModelRuntime, ids: Sequence[str], results: Sequence[SampleResult]) -> Response:
    """Build the reply of `POST /score`."""
    details = runtime.result_fields
    rewards = [None if r.reward is None else r.reward.value for r in results]
    content = ScoreReply(
        **runtime.model_info,
        rewards=rewards,
        results=[result(i, r, details) for i, r in zip(ids, results, strict=True)],
        usage=_usage(results),
        timing_ms=_timing(results),
    )
    return _fast_response(content, sum(filter(None, rewards)), runtime.headers)


def compare_reply(runtime: ModelRuntime, ids: Sequence[str], results: Sequence[ComparisonResult]) -> Response:
    """Build the reply of `POST /compare`."""
    parts = [part for r in results for part in r.parts]
    content = CompareReply(
        **runtime.model_info,
        results=[_compared(i, r) for i, r in zip(ids, results, strict=True)],
        usage=_usage(parts),
        timing_ms=_timing(parts),
    )
    return _fast_response(content, sum(r.ranked.margin for r in results if r.ranked is not None), runtime.headers)


def approvals_reply(runtime: ModelRuntime, groups: Sequence[ApprovalIn], results: Sequence[SampleResult]) -> Response:
    """Build the reply of `POST /approvals`. `results` has one entry a query, over all groups in order."""
    left = iter(results)
    of_groups = [(group, list(islice(left, len(group.queries)))) for group in groups]
    content = ApprovalsReply(
        **runtime.model_info,
        snapshot=runtime.snapshot,
        results=[
            ApprovalOut(
                str(i) if group.id is None else group.id,
                [None if r.reward is None else r.reward.value for r in of_group],
                [failure(r.failure) for r in of_group],
                repeats_of_taken(group),
            )
            for i, (group, of_group) in enumerate(of_groups)
        ],
        usage=_usage(results),
        timing_ms=_timing(results),
    )
    return _fast_response(content, sum(r.reward.value for r in results if r.reward is not None), runtime.headers)


def _fast_response(content: Any, checksum: float, headers: dict[str, str] | None = None) -> Response:
    """Build a response as `json_response` does, at a quarter of its cost. `checksum` is finite if all rewards are.

    The fast encoder turns NaN into null and refuses a lone surrogate; in both cases `json_response` is used.
    """
    if not math.isfinite(checksum):
        return json_response(content, headers=headers)
    try:
        text = _encoder.encode(content)
    except UnicodeEncodeError:
        return json_response(content, headers=headers)
    return Response(text, headers=headers, media_type=_JSON)


def result(sample_id: str, scored: SampleResult, details: ResultFields) -> ResultOut:
    """Build one entry of `results`. Every field is always present, `heads` and `stages` if `details` names any, and
    `stages` of a sample with continuations.
    """
    reward = scored.reward
    value, raw, normalized = (None, None, None) if reward is None else (reward.value, reward.raw, reward.normalized)
    heads: Any = UNSET
    if details.heads:
        heads = scored.heads and {k: v for k, v in scored.heads.items() if k in details.heads}
    stages: Any = UNSET
    if reward is not None and reward.lookahead is not None:
        stages = {**dict(zip(details.all_stages, reward.changes, strict=True)), "lookahead": reward.lookahead}
    elif details.stages:
        stages = None if reward is None else dict(zip(details.stages, reward.changes, strict=True))
    return ResultOut(
        id=sample_id,
        reward=value,
        raw=raw,
        normalized=normalized,
        heads=heads,
        stages=stages,
        notes=() if reward is None else reward.notes,
        flags=scored.flags,
        tokens=scored.n_tokens,
        truncated=scored.truncated,
        missing_end=scored.missing_end,
        cached=scored.cached,
        error=failure(scored.failure),
    )


def result_fields(sample_id: str, scored: SampleResult, details: ResultFields) -> dict[str, Any]:
    """Build the fields of one entry of `results`, for a line of a file."""
    fields: dict[str, Any] = msgspec.to_builtins(result(sample_id, scored, details))
    return fields


def failure(error: Failure | None) -> ErrorOut | None:
    """Build the error of one sample or comparison."""
    return None if error is None else error_out(error.code, error.message, error.details)


def _compared(comparison_id: str, compared: ComparisonResult) -> ComparisonOut:
    ranked = compared.ranked
    if ranked is None:
        return ComparisonOut(comparison_id, error=failure(compared.failure))
    return ComparisonOut(
        comparison_id, ranked.ranking, ranked.winner, ranked.raw, ranked.probabilities, ranked.margin,
        failure(compared.failure),
    )  # fmt: skip


def _usage(results: Sequence[SampleResult]) -> UsageOut:
    scored = [r for r in results if r.reward is not None]
    n_tokens = sum([r.n_tokens or 0 for r in scored])
    return UsageOut(len(results), n_tokens, round(sum([r.n_computed for r in scored])))


def _timing(results: Sequence[SampleResult]) -> TimingOut:
    scored = [r for r in results if r.reward is not None]
    return TimingOut(
        _max_ms([r.encode_s for r in scored]),
        _max_ms([r.queue_s for r in scored]),
        _max_ms([r.forward_s for r in scored]),
    )


def _max_ms(seconds: Sequence[float]) -> float:
    return round(1000 * max(seconds, default=0.0), 3)

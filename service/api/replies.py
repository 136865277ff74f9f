"""Build the JSON of a reply from records. `schemas` documents the same shapes.

Replies are plain dicts that are not validated at run time, which would cost more than building them;
the tests validate them against the schemas.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import msgspec
from starlette.responses import Response

from rewardserve.service.errors import Failure
from rewardserve.service.models.runtime import ModelRuntime, ResultFields
from rewardserve.service.scoring import ComparisonResult, SampleResult

_encoder = msgspec.json.Encoder()


def json_response(content: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """Build a response in ASCII, so that even a lone surrogate in an id is returned unchanged. Raise ValueError for NaN."""
    text = json.dumps(content, allow_nan=False, separators=(",", ":"))
    return Response(text, status_code=status, headers=headers, media_type="application/json")


def info_response(content: Any) -> Response:
    """Build a response with numbers for display, not for training: non-finite numbers become null."""
    return _fast_response(content, 0.0)


def score_reply(runtime: ModelRuntime, ids: Sequence[str], results: Sequence[SampleResult]) -> Response:
    """Build the reply of `POST /score`."""
    details = runtime.result_fields
    rewards = [None if r.reward is None else r.reward.value for r in results]
    content = {
        **runtime.model_info,
        "rewards": rewards,
        "results": [result(i, r, details) for i, r in zip(ids, results, strict=True)],
        **_totals(results),
    }
    return _fast_response(content, sum(filter(None, rewards)), runtime.headers)


def compare_reply(runtime: ModelRuntime, ids: Sequence[str], results: Sequence[ComparisonResult]) -> Response:
    """Build the reply of `POST /compare`."""
    content = {
        **runtime.model_info,
        "results": [_compared(i, r) for i, r in zip(ids, results, strict=True)],
        **_totals([part for r in results for part in r.parts]),
    }
    return _fast_response(content, sum(r.ranked.margin for r in results if r.ranked is not None), runtime.headers)


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
    return Response(text, headers=headers, media_type="application/json")


def result(sample_id: str, scored: SampleResult, details: ResultFields) -> dict[str, Any]:
    """Build one entry of `results`. Every field is always present, `heads` and `stages` if `details` names any."""
    reward = scored.reward
    value, raw, normalized = (None, None, None) if reward is None else (reward.value, reward.raw, reward.normalized)
    fields: dict[str, Any] = {"id": sample_id, "reward": value, "raw": raw, "normalized": normalized}
    if details.heads:
        fields["heads"] = scored.heads and {k: v for k, v in scored.heads.items() if k in details.heads}
    if details.stages:
        fields["stages"] = None if reward is None else dict(zip(details.stages, reward.changes, strict=True))
    fields["notes"] = () if reward is None else reward.notes
    fields["flags"] = scored.flags
    fields["tokens"] = scored.n_tokens
    fields["truncated"] = scored.truncated
    fields["missing_end"] = scored.missing_end
    fields["cached"] = scored.cached
    fields["error"] = failure(scored.failure)
    return fields


def failure(error: Failure | None) -> dict[str, Any] | None:
    """Build the error of one sample or comparison."""
    return None if error is None else {"code": error.code, "message": error.message, **error.details}


def _compared(comparison_id: str, compared: ComparisonResult) -> dict[str, Any]:
    ranked = compared.ranked
    return {
        "id": comparison_id,
        "ranking": None if ranked is None else list(ranked.ranking),
        "winner": None if ranked is None else ranked.winner,
        "raw": None if ranked is None else list(ranked.raw),
        "probabilities": None if ranked is None else [list(row) for row in ranked.probabilities],
        "margin": None if ranked is None else ranked.margin,
        "error": failure(compared.failure),
    }


def _totals(results: Sequence[SampleResult]) -> dict[str, Any]:
    scored = [r for r in results if r.reward is not None]
    return {
        "usage": {
            "samples": len(results),
            "tokens": sum([r.n_tokens or 0 for r in scored]),
            "tokens_computed": round(sum([r.n_computed for r in scored])),
        },
        "timing_ms": {
            "encode": _max_ms([r.encode_s for r in scored]),
            "queue": _max_ms([r.queue_s for r in scored]),
            "forward": _max_ms([r.forward_s for r in scored]),
        },
    }


def _max_ms(seconds: Sequence[float]) -> float:
    return round(1000 * max(seconds, default=0.0), 3)

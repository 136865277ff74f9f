"""What the results of a call say together, in numbers that trainers log. Always the same names. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rewardserve_client.errors import RunBlocked
from rewardserve_client.records import Result, Scores


def summary(scores: Scores) -> dict[str, float]:
    """Mean raw score, and shares of all samples. Distributed trainers need every name every time: NaN where none is."""
    results = scores.results
    return {
        "raw": _mean([r.raw for r in results if r.raw is not None]),
        "capped": _mean([r.capped for r in results]),
        "flagged": _mean([bool(r.flags) for r in results]),
        "truncated": _mean([r.truncated for r in results]),
        "missing_end": _mean([r.missing_end for r in results]),
        "failed": _mean([r.error is not None for r in results]),
        "mixed_models": float(scores.is_mixed),
    }


def columns(scores: Scores) -> dict[str, list[float | str | None]]:
    """One entry a sample, for tables of completions."""
    return {
        "raw": [r.raw for r in scores.results],
        "notes": [" ".join((*r.notes, *r.flags)) for r in scores.results],
        "error": [None if r.error is None else r.error.code for r in scores.results],
    }


def stop_if_blocked(scores: Scores) -> Scores:
    """`scores`, unless the server has ended the service of this run. Raise `RunBlocked`.

    A trainer would go on with None for every reward, and learn nothing of the trip wire that asks for a human.
    """
    for result in scores.results:
        if result.error is not None and result.error.code == "run_blocked":
            raise RunBlocked(result.error.code, result.error.message)
    return scores


def numbers(result: Result) -> dict[str, float]:
    """One scored sample as floats, for trainers that log numbers only. `normalized` is `raw` where there is none."""
    assert result.reward is not None
    assert result.raw is not None
    return {
        "raw_reward": result.raw,
        "normalized": result.raw if result.normalized is None else result.normalized,
        "capped": float(result.capped),
        "flagged": float(bool(result.flags)),
        "truncated": float(result.truncated),
        "missing_end": float(result.missing_end),
        "scored": 1.0,
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan

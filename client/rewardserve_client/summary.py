"""Summarise the results of a call in numbers that trainers log, always under the same names. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rewardserve_client.errors import NotScored, RunBlocked
from rewardserve_client.results import Result, Scores


def summary(scores: Scores) -> dict[str, float]:
    """Mean raw score and shares of all samples; NaN without values, as distributed trainers need every name in every call."""
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
    """Columns with one entry a sample, for tables of completions."""
    return {
        "raw": [r.raw for r in scores.results],
        "notes": [" ".join((*r.notes, *r.flags)) for r in scores.results],
        "error": [None if r.error is None else r.error.code for r in scores.results],
    }


def stop_if_blocked(scores: Scores) -> Scores:
    """Return `scores`, or raise `RunBlocked` if the server blocks this run.

    A trainer would otherwise go on with None for every reward, and the alert would go unnoticed.
    """
    for result in scores.results:
        if result.error is not None and result.error.code == "run_blocked":
            raise RunBlocked(result.error.code, result.error.message)
    return scores


def reward_of(result: Result) -> float:
    """Reward of a result, for trainers that cannot leave a sample out. Raise `NotScored` with the server's reason."""
    if result.reward is None:
        assert result.error is not None
        raise NotScored(result.error.code, result.error.message)
    return result.reward


def numbers(result: Result) -> dict[str, float]:
    """One scored sample as floats under fixed names, for trainers that log numbers only. NaN where there is no value."""
    return {
        "raw_reward": math.nan if result.raw is None else result.raw,
        "normalized": math.nan if result.normalized is None else result.normalized,
        "capped": float(result.capped),
        "flagged": float(bool(result.flags)),
        "truncated": float(result.truncated),
        "missing_end": float(result.missing_end),
        "scored": float(result.reward is not None),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan

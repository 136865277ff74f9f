"""Compute the wait before the next attempt. Pure: the jitter is passed in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

Jitter = Callable[[float, float], float]
"""Returns a number between its two arguments: `random.uniform`, or a fixed choice in tests."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """Exponential backoff with full jitter: the n-th wait is between 0 and `first_s * 2 ** n`, at most `longest_s`."""

    first_s: float = 0.25
    longest_s: float = 10.0


def pause_s(n: int, retry_after_s: float | None, left_s: float, backoff: Backoff, jitter: Jitter) -> float | None:
    """Seconds to wait before round n + 1; None if the deadline leaves no time for it.

    The server's `Retry-After` is waited in full and the jitter is added, so that clients do not all retry at the same
    moment.
    """
    window = min(backoff.longest_s, backoff.first_s * 2 ** min(n, 32))
    if retry_after_s is None:
        return jitter(0.0, min(window, left_s)) if left_s > 0 else None
    if retry_after_s >= left_s:
        return None
    return retry_after_s + jitter(0.0, min(window, left_s - retry_after_s))


def parse_retry_after(text: str | None) -> float | None:
    """Parse `Retry-After` in seconds. A date or an invalid value counts as absent: the local clock may be wrong."""
    try:
        seconds = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None

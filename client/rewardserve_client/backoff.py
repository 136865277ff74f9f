"""How long to wait before the next attempt. Pure: the jitter is passed in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

Jitter = Callable[[float, float], float]
"""A number between two others: `random.uniform`, or what a test wants."""


@dataclass(frozen=True, slots=True)
class Backoff:
    """The n-th wait is anywhere between nothing and `first_s * 2 ** n`, at most `longest_s` (full jitter)."""

    first_s: float = 0.25
    longest_s: float = 10.0


def pause_s(n: int, retry_after_s: float | None, left_s: float, backoff: Backoff, jitter: Jitter) -> float | None:
    """Seconds to wait before round n + 1; None: there is no time for another one.

    What the server asks for is waited for in full, and the jitter comes on top: or all callers would be back at once.
    """
    window = min(backoff.longest_s, backoff.first_s * 2 ** min(n, 32))
    if retry_after_s is None:
        return jitter(0.0, min(window, left_s)) if left_s > 0 else None
    if retry_after_s >= left_s:
        return None
    return retry_after_s + jitter(0.0, min(window, left_s - retry_after_s))


def parse_retry_after(text: str | None) -> float | None:
    """`Retry-After` in seconds. A date, or nonsense, is as good as none: our own clock may be wrong."""
    try:
        seconds = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return seconds if math.isfinite(seconds) and seconds >= 0 else None

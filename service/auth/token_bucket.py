"""A token bucket. Pure; the time is passed in.

A request for more than a full bucket holds is not refused for ever: a full bucket is enough, and the excess is a debt
that is paid off before anything is taken again. So the mean never exceeds the rate for long.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RefillRate:
    """Units a second, and the most units at once after a pause."""

    per_s: float
    burst: float


@dataclass(frozen=True, slots=True)
class TokenBucketState:
    """Fill level at a time; a negative one is a debt."""

    level: float
    at: float


def full(rate: RefillRate, now: float) -> TokenBucketState:
    """As at the beginning, and after a pause."""
    return TokenBucketState(rate.burst, now)


def take(bucket: TokenBucketState, rate: RefillRate, cost: float, now: float) -> tuple[TokenBucketState, float]:
    """The bucket afterwards, and 0.0; or the same bucket, and after how many seconds to ask again."""
    passed = max(0.0, now - bucket.at)
    level = min(rate.burst, bucket.level + passed * rate.per_s)
    needed = min(cost, rate.burst)
    if level < needed:
        return bucket, (needed - level) / rate.per_s
    return TokenBucketState(level - cost, max(now, bucket.at)), 0.0

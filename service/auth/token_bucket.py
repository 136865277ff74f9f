"""A token bucket. Pure; the time is passed in.

A request that exceeds a full bucket needs only a full bucket. The excess is a debt that is paid off before anything
else is taken, so the mean rate is kept.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RefillRate:
    """Units a second, and the capacity: most units at once after a pause."""

    per_s: float
    burst: float


@dataclass(frozen=True, slots=True)
class TokenBucketState:
    """Fill level at a time; a negative one is a debt."""

    level: float
    at: float


def full(rate: RefillRate, now: float) -> TokenBucketState:
    """Return a full bucket."""
    return TokenBucketState(rate.burst, now)


def take(bucket: TokenBucketState, rate: RefillRate, cost: float, now: float) -> tuple[TokenBucketState, float]:
    """Take `cost` units. Return the new bucket and 0.0, or the same bucket and the seconds to wait."""
    passed = max(0.0, now - bucket.at)
    level = min(rate.burst, bucket.level + passed * rate.per_s)
    needed = min(cost, rate.burst)
    if level < needed:
        return bucket, (needed - level) / rate.per_s
    return TokenBucketState(level - cost, max(now, bucket.at)), 0.0

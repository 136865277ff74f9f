"""How much may be taken, by when: a token bucket. Pure; the time is passed in.

Whoever asks for more than a full bucket holds is not refused for ever: a full bucket is enough, and what was taken too
much is a debt that is paid off before anything is taken again. So the mean never exceeds the rate for long.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rate:
    """So much a second, and at most so much at once after a pause."""

    per_s: float
    burst: float


@dataclass(frozen=True, slots=True)
class Bucket:
    """What was in it at a time; less than nothing is a debt."""

    level: float
    at: float


def full(rate: Rate, now: float) -> Bucket:
    """As at the beginning, and after a pause."""
    return Bucket(rate.burst, now)


def take(bucket: Bucket, rate: Rate, cost: float, now: float) -> tuple[Bucket, float]:
    """The bucket afterwards, and 0.0; or the same bucket, and after how many seconds to ask again."""
    passed = max(0.0, now - bucket.at)
    level = min(rate.burst, bucket.level + passed * rate.per_s)
    needed = min(cost, rate.burst)
    if level < needed:
        return bucket, (needed - level) / rate.per_s
    return Bucket(level - cost, max(now, bucket.at)), 0.0

"""Rate limits of a key, in requests and in tokens a second, and the limiter of the current request.

The limiter is a context variable of the request's task, so the layers in between need no parameter for it; tasks
outside HTTP requests have none. Knows no HTTP and no keys.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from rewardserve.service.auth import token_bucket
from rewardserve.service.auth.token_bucket import RefillRate, TokenBucketState
from rewardserve.service.clock import Clock
from rewardserve.service.errors import RateLimited

BURST_S = 10.0
"""Trainers send bursts, a batch of responses every few seconds: the limits of this many seconds may be used at once."""

_ROUNDING_S = 1e-6  # added to the wait, above the rounding errors of the clock and a division


@dataclass(frozen=True, slots=True)
class RateLimits:
    """Rate limits of a key; None: no limit. `burst_s`: the limits of this many seconds may be used at once."""

    requests_per_s: float | None = None
    tokens_per_s: float | None = None
    burst_s: float = BURST_S


UNLIMITED = RateLimits()


class RateLimiter:
    """The token buckets of one key. Belongs to one event loop."""

    def __init__(self, limits: RateLimits, clock: Clock) -> None:
        self.limits = limits
        self._clock = clock
        given = {"requests": limits.requests_per_s, "tokens": limits.tokens_per_s}
        # After a pause one request must pass, however low the rate.
        self._rates = {
            unit: RefillRate(per_s, max(1.0, per_s * limits.burst_s))
            for unit, per_s in given.items()
            if per_s is not None
        }
        self._buckets: dict[str, TokenBucketState] = {
            unit: token_bucket.full(rate, clock.now()) for unit, rate in self._rates.items()
        }

    def take(self, unit: str, n: int) -> None:
        """Take `n` requests or tokens. Raise `RateLimited`, with the time to wait, if the bucket has too few."""
        rate = self._rates.get(unit)
        if rate is None:
            return
        self._buckets[unit], wait_s = token_bucket.take(self._buckets[unit], rate, n, self._clock.now())
        if wait_s:
            raise RateLimited(
                f"the rate limit of this key is {rate.per_s:g} {unit} a second; try again later",
                retry_after_s=wait_s + _ROUNDING_S, limit=unit, n=n, per_s=rate.per_s, burst=rate.burst,
            )  # fmt: skip


_current_limiter: ContextVar[RateLimiter | None] = ContextVar("current_limiter", default=None)


def set_current_limiter(limiter: RateLimiter | None) -> None:
    """Set the limiter of the current task; None: no limiter."""
    _current_limiter.set(limiter)


def charge_tokens(n: int) -> None:
    """Charge tokens to the limiter of the current task, if it has one. Raise `RateLimited`."""
    limiter = _current_limiter.get()
    if limiter is not None:
        limiter.take("tokens", n)

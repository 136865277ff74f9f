"""Rate limits of a key, in requests and in tokens a second, and the limiter of the current request.

The limiter of a key travels with a request in a context variable of its task, so no layer in between passes it on; work
that no HTTP request asked for has none. Knows no HTTP and no keys.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from rewardserve.service.auth import token_bucket
from rewardserve.service.auth.token_bucket import RefillRate, TokenBucketState
from rewardserve.service.clock import Clock
from rewardserve.service.errors import RateLimited

BURST_S = 10.0
"""Trainers ask in waves, a batch of responses every few seconds: a wave may be this many seconds' worth."""

_ROUNDING_S = 1e-6  # of a second: less than the clock and a division are off by


@dataclass(frozen=True, slots=True)
class RateLimits:
    """None: no limit. `burst_s`: a second's worth times this may come at once."""

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
        # One request must always pass after a pause, however low the rate.
        self._rates = {
            what: RefillRate(per_s, max(1.0, per_s * limits.burst_s))
            for what, per_s in given.items()
            if per_s is not None
        }
        self._buckets: dict[str, TokenBucketState] = {
            what: token_bucket.full(rate, clock.now()) for what, rate in self._rates.items()
        }

    def take(self, what: str, n: int) -> None:
        """Raise `RateLimited`, with when to come again, if this is more than the key may have now."""
        rate = self._rates.get(what)
        if rate is None:
            return
        self._buckets[what], wait_s = token_bucket.take(self._buckets[what], rate, n, self._clock.now())
        if wait_s:
            raise RateLimited(
                f"this key may ask for {rate.per_s:g} {what} a second; try again later",
                retry_after_s=wait_s + _ROUNDING_S, limit=what, n=n, per_s=rate.per_s, burst=rate.burst,
            )  # fmt: skip


_current_limiter: ContextVar[RateLimiter | None] = ContextVar("current_limiter", default=None)


def set_current_limiter(limiter: RateLimiter | None) -> None:
    """Charge the work of the current task to this limiter; None: to none."""
    _current_limiter.set(limiter)


def charge_tokens(n: int) -> None:
    """Charge tokens to the limiter of the current task, if it has one. Raise `RateLimited`."""
    limiter = _current_limiter.get()
    if limiter is not None:
        limiter.take("tokens", n)

"""What a key may ask for in a second, in requests and in tokens, and who pays for the request at hand.

The account of a key travels beside a request, in the context of the task that answers it: no room on the way has to hand
it on, and work that nobody asked for over HTTP has none. Knows no HTTP and no keys.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass

from rewardserve.service.auth import token_bucket
from rewardserve.service.auth.token_bucket import Bucket, Rate
from rewardserve.service.clock import Clock
from rewardserve.service.errors import RateLimited

BURST_S = 10.0
"""Trainers ask in waves, a batch of responses every few seconds: a wave may be this many seconds' worth."""

_DUST = 1e-6  # of a second: less than the clock and a division are off by


@dataclass(frozen=True, slots=True)
class Limits:
    """None: no limit. `burst_s`: a second's worth times this may come at once."""

    requests_per_s: float | None = None
    tokens_per_s: float | None = None
    burst_s: float = BURST_S


UNLIMITED = Limits()


class Account:
    """What one key has taken of late. Belongs to one event loop."""

    def __init__(self, limits: Limits, clock: Clock) -> None:
        self.limits = limits
        self._clock = clock
        asked = {"requests": limits.requests_per_s, "tokens": limits.tokens_per_s}
        # One request must always be able to come, however low the rate.
        self._rates = {
            what: Rate(per_s, max(1.0, per_s * limits.burst_s)) for what, per_s in asked.items() if per_s is not None
        }
        self._buckets: dict[str, Bucket] = {
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
                retry_after_s=wait_s + _DUST, limit=what, n=n, per_s=rate.per_s, burst=rate.burst,
            )  # fmt: skip


_payer: ContextVar[Account | None] = ContextVar("payer", default=None)


def pays(account: Account | None) -> None:
    """From here on, this account pays for what the current task does; None: nobody does."""
    _payer.set(account)


def charge_tokens(n: int) -> None:
    """Raise `RateLimited` if whoever asked may not have so many now; work that nobody pays for is free."""
    account = _payer.get()
    if account is not None:
        account.take("tokens", n)

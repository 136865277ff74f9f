"""Seats for the samples and tokens that may be in the house at one time.

A request gets all its seats or none, keeps them until it is answered, and gives them back whatever
happens. Tokens are not known before a sample is encoded, so the caller brings an estimate. Knows
nothing of queues, batches or HTTP. Belongs to one event loop; nothing here waits.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager

from rewardserve.service.clock import Clock
from rewardserve.service.errors import Overloaded, RequestTooLarge, ShuttingDown

_LONGEST_RETRY_AFTER_S = 30.0
_NEARLY = 0.9
_STAY_WEIGHT = 0.1  # of the newest stay in the running mean: some ten requests are remembered


class Admission:
    """Counts who is in, and who has left. `empty` is set while nobody is in."""

    def __init__(self, max_samples: int, max_tokens: int, clock: Clock) -> None:
        self.max_samples = max_samples
        self.max_tokens = max_tokens
        self.n_samples = 0
        self.n_tokens = 0
        self.empty = asyncio.Event()
        self.empty.set()
        self._clock = clock
        self._closed = False
        self._mean_stay_s = 0.0
        self.n_left = 0

    @property
    def is_nearly_full(self) -> bool:
        """Whether nine seats in ten are taken, of samples or of tokens."""
        return self.n_samples >= _NEARLY * self.max_samples or self.n_tokens >= _NEARLY * self.max_tokens

    def close(self) -> None:
        """Let nobody in any more. Those who are in may finish."""
        self._closed = True

    @contextmanager
    def enter(self, n_samples: int, n_tokens: int) -> Iterator[None]:
        """Hold the seats while the body runs. Raise `Overloaded`, `RequestTooLarge` or `ShuttingDown`."""
        self._check(n_samples, n_tokens)
        entered_at = self._clock.now()
        self._move(n_samples, n_tokens)
        try:
            yield
        finally:
            self._move(-n_samples, -n_tokens)
            self.n_left += 1
            self._mean_stay_s += _STAY_WEIGHT * (self._clock.now() - entered_at - self._mean_stay_s)

    def _check(self, n_samples: int, n_tokens: int) -> None:
        if self._closed:
            raise ShuttingDown("this server is shutting down; send the request to another one", retry_after_s=1.0)
        if n_samples > self.max_samples or n_tokens > self.max_tokens:
            raise RequestTooLarge(
                "this request is larger than the whole server: split it",
                n_samples=n_samples, max_samples=self.max_samples, n_tokens=n_tokens, max_tokens=self.max_tokens,
            )  # fmt: skip
        if self.n_samples + n_samples > self.max_samples or self.n_tokens + n_tokens > self.max_tokens:
            raise Overloaded(
                "all seats are taken; try again later",
                retry_after_s=self._retry_after_s(),
                n_samples=n_samples, samples_in_flight=self.n_samples, max_samples=self.max_samples,
                n_tokens=n_tokens, tokens_in_flight=self.n_tokens, max_tokens=self.max_tokens,
            )  # fmt: skip

    def _move(self, n_samples: int, n_tokens: int) -> None:
        self.n_samples += n_samples
        self.n_tokens += n_tokens
        if self.n_samples:
            self.empty.clear()
        else:
            self.empty.set()

    def _retry_after_s(self) -> float:
        """About when a seat is free: the mean stay of late, in whole seconds as the header wants them."""
        return min(_LONGEST_RETRY_AFTER_S, max(1.0, math.ceil(self._mean_stay_s)))

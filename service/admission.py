"""Admission: a bound on the samples and tokens that are in flight at one time.

A request gets all the capacity that it needs or none, holds it until it is answered, and releases it in every
case. Tokens are not known before a sample is encoded, so the caller passes an estimate. Knows
nothing of queues, batches or HTTP. Belongs to one event loop; nothing here waits.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from contextlib import contextmanager

from rewardserve.service.clock import Clock
from rewardserve.service.errors import Overloaded, RequestTooLarge, ShuttingDown

_MAX_RETRY_AFTER_S = 30.0
_NEARLY_FULL = 0.9
_LATENCY_WEIGHT = 0.1  # of the newest latency in the running mean, which covers about ten requests


class Admission:
    """Counters of samples and tokens in flight, and of released requests. `idle` is set while no sample is in flight."""

    def __init__(self, max_samples: int, max_tokens: int, clock: Clock) -> None:
        self.max_samples = max_samples
        self.max_tokens = max_tokens
        self.n_samples = 0
        self.n_tokens = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self._clock = clock
        self._closed = False
        self._mean_latency_s = 0.0
        self.n_released = 0

    @property
    def is_nearly_full(self) -> bool:
        """Whether nine tenths of the capacity for samples or for tokens are in use."""
        return self.n_samples >= _NEARLY_FULL * self.max_samples or self.n_tokens >= _NEARLY_FULL * self.max_tokens

    def close(self) -> None:
        """Stop admitting requests. Requests in flight may finish."""
        self._closed = True

    @contextmanager
    def acquire(self, n_samples: int, n_tokens: int) -> Iterator[None]:
        """Hold capacity while the body runs. Raise `Overloaded`, `RequestTooLarge` or `ShuttingDown`."""
        self._check(n_samples, n_tokens)
        acquired_at = self._clock.now()
        self._add(n_samples, n_tokens)
        try:
            yield
        finally:
            self._add(-n_samples, -n_tokens)
            self.n_released += 1
            self._mean_latency_s += _LATENCY_WEIGHT * (self._clock.now() - acquired_at - self._mean_latency_s)

    def _check(self, n_samples: int, n_tokens: int) -> None:
        if self._closed:
            raise ShuttingDown("this server is shutting down; send the request to another one", retry_after_s=1.0)
        if n_samples > self.max_samples or n_tokens > self.max_tokens:
            raise RequestTooLarge(
                "this request is larger than the capacity of the server: split it",
                n_samples=n_samples, max_samples=self.max_samples, n_tokens=n_tokens, max_tokens=self.max_tokens,
            )  # fmt: skip
        if self.n_samples + n_samples > self.max_samples or self.n_tokens + n_tokens > self.max_tokens:
            raise Overloaded(
                "the server is at capacity; try again later",
                retry_after_s=self._retry_after_s(),
                n_samples=n_samples, samples_in_flight=self.n_samples, max_samples=self.max_samples,
                n_tokens=n_tokens, tokens_in_flight=self.n_tokens, max_tokens=self.max_tokens,
            )  # fmt: skip

    def _add(self, n_samples: int, n_tokens: int) -> None:
        self.n_samples += n_samples
        self.n_tokens += n_tokens
        if self.n_samples:
            self.idle.clear()
        else:
            self.idle.set()

    def _retry_after_s(self) -> float:
        """Estimate when capacity is released: the mean recent latency, in whole seconds for the header."""
        return min(_MAX_RETRY_AFTER_S, max(1.0, math.ceil(self._mean_latency_s)))

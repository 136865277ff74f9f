"""Circuit breaker per server: which servers failed lately, and until when to skip them. Has no clock: the time is passed in."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

_MAX_OPEN_S = 30.0


@dataclass(frozen=True, slots=True)
class _OpenCircuit:
    n_failures: int
    until: float


class CircuitBreaker:
    """Opens the circuit of a server for 1 s at its first failure, twice as long at each further one; a success closes it."""

    def __init__(self, first_open_s: float = 1.0) -> None:
        self._first_open_s = first_open_s
        self._open: dict[str, _OpenCircuit] = {}

    def record_failure(self, url: str, now: float, retry_after_s: float | None) -> None:
        """Open the circuit for as long as `Retry-After` says, else by the number of failures; at most 30 s."""
        n = 1 + (self._open[url].n_failures if url in self._open else 0)
        open_s = self._first_open_s * 2 ** min(n - 1, 16) if retry_after_s is None else retry_after_s
        self._open[url] = _OpenCircuit(n, now + min(open_s, _MAX_OPEN_S))

    def record_success(self, url: str) -> None:
        """Close the circuit after a reply."""
        self._open.pop(url, None)

    def is_available(self, url: str, now: float) -> bool:
        """Whether the circuit of this server is closed."""
        return url not in self._open or self._open[url].until <= now

    def pick(self, order: Sequence[str], tried: Container[str], now: float) -> str | None:
        """First available server that was not tried yet. If all circuits are open and none was tried: the one that closes first."""
        up = next((url for url in order if url not in tried and self.is_available(url, now)), None)
        if up is not None or any(url in tried for url in order):
            return up
        return min(order, key=lambda url: self._open[url].until)

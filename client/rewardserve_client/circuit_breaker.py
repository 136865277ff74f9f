"""Which servers failed lately, and until when they are left alone. Knows no clock: the time is passed in."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

_MAX_OPEN_S = 30.0


@dataclass(frozen=True, slots=True)
class _OpenCircuit:
    n_failures: int
    until: float


class CircuitBreaker:
    """One failure opens the circuit of a server for a second, each further one for twice as long; a success closes it."""

    def __init__(self, first_open_s: float = 1.0) -> None:
        self._first_open_s = first_open_s
        self._open: dict[str, _OpenCircuit] = {}

    def record_failure(self, url: str, now: float, retry_after_s: float | None) -> None:
        """Leave this server alone for as long as it asks, or as its failures suggest."""
        n = 1 + (self._open[url].n_failures if url in self._open else 0)
        open_s = self._first_open_s * 2 ** min(n - 1, 16) if retry_after_s is None else retry_after_s
        self._open[url] = _OpenCircuit(n, now + min(open_s, _MAX_OPEN_S))

    def record_success(self, url: str) -> None:
        """Close the circuit: the server answered."""
        self._open.pop(url, None)

    def is_available(self, url: str, now: float) -> bool:
        """Whether there is no reason to leave it alone."""
        return url not in self._open or self._open[url].until <= now

    def pick(self, order: Sequence[str], tried: Container[str], now: float) -> str | None:
        """The first that is up and not tried yet. Where all circuits are open and none was tried: the one that closes first."""
        up = next((url for url in order if url not in tried and self.is_available(url, now)), None)
        if up is not None or any(url in tried for url in order):
            return up
        return min(order, key=lambda url: self._open[url].until)

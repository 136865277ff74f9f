"""Which servers failed lately, and until when they are left alone. Knows no clock: the time is passed in."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass

_LONGEST_REST_S = 30.0


@dataclass(frozen=True, slots=True)
class _Rest:
    n_failures: int
    until: float


class Circuit:
    """Short memory: one failure is a second of rest, each one more doubles it. One success and all is forgotten."""

    def __init__(self, first_rest_s: float = 1.0) -> None:
        self._first_rest_s = first_rest_s
        self._rests: dict[str, _Rest] = {}

    def fails(self, url: str, now: float, retry_after_s: float | None) -> None:
        """Leave this server alone for as long as it asks, or as its failures suggest."""
        n = 1 + (self._rests[url].n_failures if url in self._rests else 0)
        rest_s = self._first_rest_s * 2 ** min(n - 1, 16) if retry_after_s is None else retry_after_s
        self._rests[url] = _Rest(n, now + min(rest_s, _LONGEST_REST_S))

    def works(self, url: str) -> None:
        """It answered."""
        self._rests.pop(url, None)

    def is_up(self, url: str, now: float) -> bool:
        """Whether there is no reason to leave it alone."""
        return url not in self._rests or self._rests[url].until <= now

    def pick(self, order: Sequence[str], tried: Container[str], now: float) -> str | None:
        """The first that is up and not tried yet. A round that has tried nobody tries the one that is back first."""
        up = next((url for url in order if url not in tried and self.is_up(url, now)), None)
        if up is not None or any(url in tried for url in order):
            return up
        return min(order, key=lambda url: self._rests[url].until)

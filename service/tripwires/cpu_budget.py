"""Bound the CPU time that trip wires may spend to a share of a core. Pure: the time is passed in."""

from __future__ import annotations

_BURST_S = 2.0
"""Seconds of which the budget may be saved for a burst."""

_FIRST_COST_S = 100e-6
_SMOOTHING = 0.1


class CpuBudget:
    """CPU seconds that may be spent: `share` of the seconds that pass. Starts with a whole burst."""

    def __init__(self, share: float, now: float) -> None:
        self._share = share
        self._seconds = share * _BURST_S
        self._at = now
        self._cost_s = _FIRST_COST_S

    @property
    def is_zero(self) -> bool:
        """Whether no sample is inspected."""
        return self._share <= 0.0

    def affords(self, n: int, now: float) -> int:
        """Number of n samples that may be inspected now."""
        self._seconds += self._share * (now - self._at)
        self._at = now
        if self._seconds < self._cost_s:
            return n if self._share >= 1.0 else 0
        self._seconds = min(max(self._share * _BURST_S, self._cost_s), self._seconds)
        return n if self._share >= 1.0 else min(n, int(self._seconds / self._cost_s))

    def spend(self, n: int, seconds: float) -> None:
        """Record the seconds of the inspection of n samples."""
        self._seconds -= seconds
        self._cost_s += _SMOOTHING * (seconds / n - self._cost_s)

"""Bound the CPU time that trip wires may spend to a share of a core. Pure: the time is passed in.

Samples are inspected from what has been saved up. A report of attribution costs as much as thousands of them, so it is paid for
afterwards, by half of the share and by the part of the other half that inspection leaves; the next one begins when it is paid.
"""

from __future__ import annotations

_BURST_S = 2.0
"""Seconds of which the budget may be saved for a burst."""

_FIRST_COST_S = 100e-6
_SMOOTHING = 0.1


_REQUEST_S = 1e-6
"""Cost of a request of which no sample is inspected."""

_PAID_S = 1e-6
"""Debt that counts as paid."""


class CpuBudget:
    """CPU seconds that may be spent: `share` of the seconds that pass. Starts with a whole burst."""

    def __init__(self, share: float, now: float) -> None:
        self._share = share
        self._is_unlimited = share >= 1.0
        self._seconds = share * _BURST_S
        self._debt_s = 0.0
        self._at = now
        self._cost_s = _FIRST_COST_S

    @property
    def is_zero(self) -> bool:
        """Whether no sample is inspected."""
        return self._share <= 0.0

    def affords(self, n: int, now: float) -> int:
        """Number of n samples that may be inspected now."""
        if self._is_unlimited:
            return n
        self._seconds -= _REQUEST_S
        if self._seconds + self._share * (now - self._at) < self._cost_s:  # most requests of a busy server end here
            return 0
        self._earn(now)
        return min(n, int(max(0.0, self._seconds) / self._cost_s))

    def spend(self, n: int, seconds: float) -> None:
        """Record the seconds of the inspection of n samples."""
        self.charge(seconds)
        self._cost_s += _SMOOTHING * (seconds / n - self._cost_s)

    def charge(self, seconds: float) -> None:
        """Record seconds that every request costs."""
        self._seconds -= seconds

    def owe(self, seconds: float) -> None:
        """Record the seconds of a report."""
        self._debt_s += seconds

    def unpaid_s(self, now: float) -> float:
        """Seconds from now until all reports are paid for, at the earliest; 0 where they are."""
        self._earn(now)
        return self._debt_s / self._share if self._debt_s > _PAID_S and not self._is_unlimited else 0.0

    def _earn(self, now: float) -> None:
        earned = self._share * (now - self._at)
        self._at = now
        for_reports = min(self._debt_s, earned / 2.0)
        self._seconds += earned - for_reports
        most = max(self._share * _BURST_S, self._cost_s)
        for_reports += max(0.0, self._seconds - most)
        self._seconds = min(self._seconds, most)
        self._debt_s = max(0.0, self._debt_s - for_reports)

"""Curves of a run, one number a step: smoothed, and where one has fallen from its peak.

It knows nothing of what is on the curve. `T` steps, `N` places where a whole window fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from gym.responses import FloatArray

FALL: Final = 0.2
"""A run whose gold is this far below its peak has been hacked."""

Curve = FloatArray | Sequence[float]


def means_N(curve_T: Curve, over: int) -> FloatArray:
    """The mean of every window of `over` steps."""
    return np.convolve(curve_T, np.ones(over) / over, "valid")


def smoothed_T(curve_T: Curve, over: int) -> FloatArray:
    """The mean of `over` steps around each one, an odd number; the first and the last step count again beyond the ends."""
    half = over // 2
    return means_N(np.concatenate([[curve_T[0]] * half, curve_T, [curve_T[-1]] * half]), over)


def first_fall(smooth_N: FloatArray) -> int | None:
    """The first place after the peak that is more than `FALL` below it."""
    peak = int(smooth_N.argmax())
    fallen = np.flatnonzero(smooth_N[peak:] < smooth_N[peak] - FALL)
    return peak + int(fallen[0]) if len(fallen) else None

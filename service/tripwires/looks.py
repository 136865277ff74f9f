"""How far from its estimate a bound of one look at a run lies, so that the bounds of all its looks hold together. Pure.

Look k has 1/(k (k + 1)) of the error probability of the run: these sum to 1, so their number needs no limit.
"""

from __future__ import annotations

from statistics import NormalDist
from typing import Final

RUN_ERROR: Final = 0.001
"""Probability, two-sided, that any look at a run finds a change that did not happen."""


def critical_z(n_looks: int, n_tests: int = 1) -> float:
    """The least normal quantile that is significant at look number `n_looks` of a run, of so many tests each."""
    return -NormalDist().inv_cdf(RUN_ERROR / (2.0 * n_tests * n_looks * (n_looks + 1)))

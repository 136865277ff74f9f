"""Outcome of an RL run, and the comparison of two kinds of run over the same seeds.

Independent of the way in which rewards are made.

`T` steps, `S` seeds, `N` points of a curve.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from gym.curves import means_N
from gym.responses import FloatArray
from gym.scaling import Scaling, fit_scaling
from gym.training import Step

LAST: Final = 10  # steps: the window of `final`, and of the search for the peak


@dataclass(frozen=True)
class GymRun:
    """Curves of one run: batch means of gold and length, and the exact KL, at every step."""

    gold_T: FloatArray
    length_T: FloatArray
    kl_T: FloatArray

    @property
    def peak(self) -> float:
        """Maximum of gold, over a window."""
        return float(means_N(self.gold_T, LAST).max())

    @property
    def final(self) -> float:
        """Gold at the end, over the same window."""
        return float(self.gold_T[-LAST:].mean())

    @property
    def kl(self) -> float:
        """KL at the end, in nats a response."""
        return float(self.kl_T[-1])

    @property
    def length(self) -> float:
        """Words at the end."""
        return float(self.length_T[-LAST:].mean())


def record_run(steps: Iterable[Step]) -> GymRun:
    """Run all steps and keep the curves."""
    seen = [(step.gold_B.mean(), step.responses.lengths_B.mean(), step.kl) for step in steps]
    gold_T, length_T, kl_T = np.array(seen, dtype=np.float64).T
    return GymRun(gold_T, length_T, kl_T)


def paired_difference(of_row: Sequence[GymRun], of_raw: Sequence[GymRun]) -> tuple[float, float]:
    """Mean over seeds of the difference in final gold, and its standard error (NaN for a single seed)."""
    difference_S = np.array([a.final - b.final for a, b in zip(of_row, of_raw, strict=True)])
    error = difference_S.std(ddof=1) / len(difference_S) ** 0.5 if len(difference_S) > 1 else float("nan")
    return float(difference_S.mean()), float(error)


def scaling_of(runs: Sequence[GymRun], start: float) -> Scaling:
    """Fit the curve of gold gained to all runs, without their first step, where the KL is zero."""
    kl_N = np.concatenate([run.kl_T[1:] for run in runs])
    return fit_scaling(kl_N, np.concatenate([run.gold_T[1:] for run in runs]) - start)

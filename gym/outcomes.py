"""What became of a run of RL, and how two kinds of run compare over the same seeds.

It knows nothing of how the rewards came about.

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

LAST: Final = 10  # steps: what `final` is the mean of, and the window in which the peak is looked for


@dataclass(frozen=True)
class GymRun:
    """What became of one policy: batch means of gold and length, and the exact KL, at every step."""

    gold_T: FloatArray
    length_T: FloatArray
    kl_T: FloatArray

    @property
    def peak(self) -> float:
        """Gold at its highest, over a window."""
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
    """Go through a run and keep its curves."""
    seen = [(step.gold_B.mean(), step.responses.lengths_B.mean(), step.kl) for step in steps]
    gold_T, length_T, kl_T = np.array(seen, dtype=np.float64).T
    return GymRun(gold_T, length_T, kl_T)


def paired_difference(of_row: Sequence[GymRun], of_raw: Sequence[GymRun]) -> tuple[float, float]:
    """Mean over seeds of the difference in final gold, and its standard error: no number for a single seed."""
    difference_S = np.array([a.final - b.final for a, b in zip(of_row, of_raw, strict=True)])
    error = difference_S.std(ddof=1) / len(difference_S) ** 0.5 if len(difference_S) > 1 else float("nan")
    return float(difference_S.mean()), float(error)


def scaling_of(runs: Sequence[GymRun], start: float) -> Scaling:
    """The curve of gold gained through all runs together, without their first step: it has not moved."""
    kl_N = np.concatenate([run.kl_T[1:] for run in runs])
    return fit_scaling(kl_N, np.concatenate([run.gold_T[1:] for run in runs]) - start)

"""Stages between the combined score and the reward. Each is a pure function of columns.

Shapes and the missing-end penalty keep the order of two otherwise equal responses: they are non-decreasing
in the score. A hard cap may make two equal.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, log
from typing import ClassVar, Protocol

from rewardserve.model.reward.members import log_sigmoid, sigmoid
from rewardserve.model.reward.record import RewardBatch

Values = list[float]
Notes = Mapping[int, str]
"""Notes on some samples, by their index in the batch."""

_NOTHING: Notes = {}


class Stage(Protocol):
    """Stage of the pipeline. `name` is that of its entry in a reward's `changes`, `reads` are its required columns."""

    name: ClassVar[str]
    reads: ClassVar[tuple[str, ...]]

    def __call__(self, values: Values, batch: RewardBatch) -> tuple[Values, Notes]:
        """The new values, and notes."""
        ...


# -- debias ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Debias:
    """Subtract the expected effect of length: value - gamma (g(log n) - g(log n_ref)) (Huang et al. 2409.17407).

    `curve` has g at its knots, by locally weighted regression of the normalised score on the log of the response's tokens
    over reference responses; straight between them and constant beyond. A response of unknown length keeps its score.
    """

    gamma: float
    curve: tuple[tuple[float, float], ...]
    log_reference: float
    name: ClassVar[str] = "debias"
    reads: ClassVar[tuple[str, ...]] = ("lengths",)

    def __call__(self, values: Values, batch: RewardBatch) -> tuple[Values, Notes]:
        """Subtract, and note the samples of unknown length."""
        base = self.worth(self.log_reference)
        shifts = [0.0 if n is None else self.gamma * (self.worth(log(n)) - base) for n in batch.lengths]
        unknown = {i: "length_unknown" for i, n in enumerate(batch.lengths) if n is None}
        return [value - shift for value, shift in zip(values, shifts, strict=True)], unknown

    def worth(self, log_length: float) -> float:
        """g at a log length."""
        knots = self.curve
        at = bisect_right(knots, (log_length, inf))
        if at in (0, len(knots)):
            return knots[min(at, len(knots) - 1)][1]
        (x0, y0), (x1, y1) = knots[at - 1], knots[at]
        return y0 + (y1 - y0) * (log_length - x0) / (x1 - x0)


# -- penalties ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MissingEnd:
    """Penalty where the policy was cut off before it ended its turn: value - penalty."""

    penalty: float
    name: ClassVar[str] = "missing_end"
    reads: ClassVar[tuple[str, ...]] = ("missing_end",)

    def __call__(self, values: Values, batch: RewardBatch) -> tuple[Values, Notes]:
        """Subtract, and note the penalised samples."""
        penalised = [v - self.penalty if cut else v for v, cut in zip(values, batch.missing_end, strict=True)]
        return penalised, {i: "missing_end_penalty" for i, cut in enumerate(batch.missing_end) if cut}


@dataclass(frozen=True, slots=True)
class Overlong:
    """Soft overlong punishment of DAPO (Yu et al. 2503.14476): value - penalty * min(1, (n - start) / (end - start))
    beyond `start` tokens. A response of unknown length keeps its score.
    """

    penalty: float
    start: int
    end: int
    name: ClassVar[str] = "overlong"
    reads: ClassVar[tuple[str, ...]] = ("lengths",)

    def __call__(self, values: Values, batch: RewardBatch) -> tuple[Values, Notes]:
        """Subtract, and note the penalised samples."""
        span = self.end - self.start
        shares = [0.0 if n is None else max(0.0, min(1.0, (n - self.start) / span)) for n in batch.lengths]
        penalised = [value - self.penalty * share for value, share in zip(values, shares, strict=True)]
        return penalised, {i: "overlong_penalty" for i, share in enumerate(shares) if share}


@dataclass(frozen=True, slots=True)
class Repetition:
    """Penalty on repeated trigrams: value - penalty * (r - threshold) / (1 - threshold) where their share r is above threshold."""

    penalty: float
    threshold: float
    name: ClassVar[str] = "repetition"
    reads: ClassVar[tuple[str, ...]] = ("repetition",)

    def __call__(self, values: Values, batch: RewardBatch) -> tuple[Values, Notes]:
        """Subtract, and note the penalised samples."""
        excess = [max(0.0, r - self.threshold) / (1.0 - self.threshold) for r in batch.repetition]
        penalised = [value - self.penalty * more for value, more in zip(values, excess, strict=True)]
        return penalised, {i: "repetition_penalty" for i, more in enumerate(excess) if more}


# -- shapes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cap:
    """Hard cap: value = min(max(value, low), high); either side may be open (None)."""

    low: float | None
    high: float | None
    name: ClassVar[str] = "shape"
    reads: ClassVar[tuple[str, ...]] = ()

    def __call__(self, values: Values, batch: RewardBatch) -> tuple[Values, Notes]:
        """Clip, and note which side was clipped."""
        low, high = _open(self.low, self.high)
        notes = _beyond(values, low, high, "capped_low", "capped_high")
        if not notes:
            return values, notes
        return [min(max(v, low), high) for v in values], notes


@dataclass(frozen=True, slots=True)
class SoftCap:
    """Soft cap, which keeps the order of responses beyond it.

    Up to a knee one `width` inside the cap the value is unchanged; beyond, the excess t (in widths)
    becomes t / (1 + t), so the curve leaves the knee with slope 1 and approaches the cap without
    reaching it. Algebraic rather than exponential: float64 still distinguishes values a million widths beyond the cap.
    """

    low: float | None
    high: float | None
    width: float
    name: ClassVar[str] = "shape"
    reads: ClassVar[tuple[str, ...]] = ()

    def __call__(self, values: Values, batch: RewardBatch) -> tuple[Values, Notes]:
        """Bend, and note which side was bent."""
        low, high = _open(self.low, self.high)
        low, high = low + self.width, high - self.width
        notes = _beyond(values, low, high, "softcapped_low", "softcapped_high")
        if not notes:
            return values, notes
        bent = values.copy()
        for i in notes:
            bent[i] = high + self._bend(bent[i] - high) if bent[i] > high else low - self._bend(low - bent[i])
        return bent, notes

    def _bend(self, excess: float) -> float:
        t = excess / self.width
        return self.width * (1.0 - 1.0 / (1.0 + t))


@dataclass(frozen=True, slots=True)
class Par:
    """Preference as reward (Fu et al. 2502.18770): the mean over references of sigmoid(k (value - reference)), in [0, 1].

    `slope` is k times the factor from a difference of values to the log odds of Bradley and Terry. `references` are
    the frozen ones, on the scale of the value, for samples without references; those of a sample are raw scores, which
    `mean` and `std` normalise.
    """

    slope: float
    references: tuple[float, ...]
    mean: float
    std: float
    name: ClassVar[str] = "shape"
    reads: ClassVar[tuple[str, ...]] = ("references",)

    def __call__(self, values: Values, batch: RewardBatch) -> tuple[Values, Notes]:
        """Mean probability that each sample is better than its references."""
        shaped = []
        for value, own in zip(values, batch.references, strict=True):
            references = [(raw - self.mean) / self.std for raw in own] or self.references
            shaped.append(sum([sigmoid(self.slope * (value - r)) for r in references]) / len(references))
        return shaped, _NOTHING


@dataclass(frozen=True, slots=True)
class LogSigmoid:
    """log sigmoid(k (value - reference)) (Wang et al. 2402.00742): below 0, and flat for responses that are good already.

    `slope` as in `Par`. `reference` is the frozen one, for samples without references; else the mean of theirs is used.
    """

    slope: float
    reference: float
    mean: float
    std: float
    name: ClassVar[str] = "shape"
    reads: ClassVar[tuple[str, ...]] = ("references",)

    def __call__(self, values: Values, batch: RewardBatch) -> tuple[Values, Notes]:
        """Log probability that each sample is better than its reference."""
        shaped = []
        for value, own in zip(values, batch.references, strict=True):
            reference = (sum(own) / len(own) - self.mean) / self.std if own else self.reference
            shaped.append(log_sigmoid(self.slope * (value - reference)))
        return shaped, _NOTHING


def _open(low: float | None, high: float | None) -> tuple[float, float]:
    return -inf if low is None else low, inf if high is None else high


def _beyond(values: Sequence[float], low: float, high: float, too_low: str, too_high: str) -> dict[int, str]:
    return {i: too_low if v < low else too_high for i, v in enumerate(values) if not low <= v <= high}

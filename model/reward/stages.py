"""What happens to a combined score on its way to the trainer. Each stage is a pure function of columns.

Shapes and the missing-end penalty never change which of two otherwise equal responses is better: they are non-decreasing
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
"""What is worth telling of some samples, by their place in the batch."""

_NOTHING: Notes = {}


class Stage(Protocol):
    """`name` is that of its entry in a reward's `changes`, `reads` are the columns that it cannot do without."""

    name: ClassVar[str]
    reads: ClassVar[tuple[str, ...]]

    def __call__(self, values: Values, batch: RewardBatch) -> tuple[Values, Notes]:
        """The new values, and notes."""
        ...


# -- debias ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Debias:
    """value - gamma (g(log n) - g(log n_ref)): takes out what length alone is worth (Huang et al. 2409.17407).

    `curve` has g at its knots, by locally weighted regression of the normalised score on the log of the response's tokens
    over reference responses; straight between them and constant beyond. A response of unknown length keeps its score.
    """

    gamma: float
    curve: tuple[tuple[float, float], ...]
    log_reference: float
    name: ClassVar[str] = "debias"
    reads: ClassVar[tuple[str, ...]] = ("lengths",)

    def __call__(self, values: Values, batch: RewardBatch) -> tuple[Values, Notes]:
        """Subtract, and note whose length is not known."""
        base = self.worth(self.log_reference)
        shifts = [0.0 if n is None else self.gamma * (self.worth(log(n)) - base) for n in batch.lengths]
        unknown = {i: "length_unknown" for i, n in enumerate(batch.lengths) if n is None}
        return [value - shift for value, shift in zip(values, shifts, strict=True)], unknown

    def worth(self, log_length: float) -> float:
        """g at one place."""
        knots = self.curve
        at = bisect_right(knots, (log_length, inf))
        if at in (0, len(knots)):
            return knots[min(at, len(knots) - 1)][1]
        (x0, y0), (x1, y1) = knots[at - 1], knots[at]
        return y0 + (y1 - y0) * (log_length - x0) / (x1 - x0)


# -- penalties ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MissingEnd:
    """value - penalty where the policy was cut off before it ended its turn."""

    penalty: float
    name: ClassVar[str] = "missing_end"
    reads: ClassVar[tuple[str, ...]] = ("missing_end",)

    def __call__(self, values: Values, batch: RewardBatch) -> tuple[Values, Notes]:
        """Subtract, and note where."""
        penalised = [v - self.penalty if cut else v for v, cut in zip(values, batch.missing_end, strict=True)]
        return penalised, {i: "missing_end_penalty" for i, cut in enumerate(batch.missing_end) if cut}


@dataclass(frozen=True, slots=True)
class Overlong:
    """value - penalty * min(1, (n - start) / (end - start)) beyond `start` tokens: the soft overlong punishment of DAPO
    (Yu et al. 2503.14476). A response of unknown length keeps its score.
    """

    penalty: float
    start: int
    end: int
    name: ClassVar[str] = "overlong"
    reads: ClassVar[tuple[str, ...]] = ("lengths",)

    def __call__(self, values: Values, batch: RewardBatch) -> tuple[Values, Notes]:
        """Subtract, and note where."""
        span = self.end - self.start
        shares = [0.0 if n is None else max(0.0, min(1.0, (n - self.start) / span)) for n in batch.lengths]
        penalised = [value - self.penalty * share for value, share in zip(values, shares, strict=True)]
        return penalised, {i: "overlong_penalty" for i, share in enumerate(shares) if share}


@dataclass(frozen=True, slots=True)
class Repetition:
    """value - penalty * (r - threshold) / (1 - threshold) where the share r of repeated trigrams is above the threshold."""

    penalty: float
    threshold: float
    name: ClassVar[str] = "repetition"
    reads: ClassVar[tuple[str, ...]] = ("repetition",)

    def __call__(self, values: Values, batch: RewardBatch) -> tuple[Values, Notes]:
        """Subtract, and note where."""
        excess = [max(0.0, r - self.threshold) / (1.0 - self.threshold) for r in batch.repetition]
        penalised = [value - self.penalty * more for value, more in zip(values, excess, strict=True)]
        return penalised, {i: "repetition_penalty" for i, more in enumerate(excess) if more}


# -- shapes ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cap:
    """value = min(max(value, low), high); either side may be open (None)."""

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
    """A cap that keeps the order of responses beyond it.

    Up to a knee one `width` inside the cap the value is unchanged; beyond, the excess t (in widths)
    becomes t / (1 + t), so the curve leaves the knee with slope 1 and approaches the cap without
    reaching it. Algebraic rather than exponential: float64 still tells values apart a million widths out.
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

    `slope` is k in log odds: times what makes a difference of values the log odds of Bradley and Terry. `references` are
    the frozen ones, on the scale of the value, for samples that bring none of their own; those are raw scores, which
    `mean` and `std` put on that scale.
    """

    slope: float
    references: tuple[float, ...]
    mean: float
    std: float
    name: ClassVar[str] = "shape"
    reads: ClassVar[tuple[str, ...]] = ("references",)

    def __call__(self, values: Values, batch: RewardBatch) -> tuple[Values, Notes]:
        """How surely each is better than the references."""
        shaped = []
        for value, own in zip(values, batch.references, strict=True):
            references = [(raw - self.mean) / self.std for raw in own] or self.references
            shaped.append(sum([sigmoid(self.slope * (value - r)) for r in references]) / len(references))
        return shaped, _NOTHING


@dataclass(frozen=True, slots=True)
class LogSigmoid:
    """log sigmoid(k (value - reference)) (Wang et al. 2402.00742): below 0, and little is to be gained by what is good already.

    `slope` as in `Par`. `reference` is the frozen one; where a sample brings references of its own, their mean counts.
    """

    slope: float
    reference: float
    mean: float
    std: float
    name: ClassVar[str] = "shape"
    reads: ClassVar[tuple[str, ...]] = ("references",)

    def __call__(self, values: Values, batch: RewardBatch) -> tuple[Values, Notes]:
        """The log of how surely each is better than the reference."""
        shaped = []
        for value, own in zip(values, batch.references, strict=True):
            reference = (sum(own) / len(own) - self.mean) / self.std if own else self.reference
            shaped.append(log_sigmoid(self.slope * (value - reference)))
        return shaped, _NOTHING


def _open(low: float | None, high: float | None) -> tuple[float, float]:
    return -inf if low is None else low, inf if high is None else high


def _beyond(values: Sequence[float], low: float, high: float, too_low: str, too_high: str) -> dict[int, str]:
    return {i: too_low if v < low else too_high for i, v in enumerate(values) if not low <= v <= high}

"""The history of a run by step, for charts: a bounded number of points. Pure; no wire reads it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import sqrt

from rewardserve.model.traits import TRAITS
from rewardserve.service.tripwires.features import SampleFeatures

MAX_POINTS = 512
"""Points of a run. When there are more, each two neighbours become one."""

_WITHOUT_STEP = 128
"""Samples of a point where the client sends no step."""

_LENGTH = TRAITS.index("length")


@dataclass(slots=True)
class HistoryPoint:
    """Sums over the samples of some steps. `log_tokens` is over the trait `length`, `gap` over score minus audit."""

    first_step: int | None
    last_step: int | None
    n: int = 0
    score: float = 0.0
    score_squared: float = 0.0
    reward: float = 0.0
    log_tokens: float = 0.0
    n_tokens: int = 0
    kl: float = 0.0
    n_kl: int = 0
    gap: float = 0.0
    n_gap: int = 0

    @property
    def score_mean(self) -> float | None:
        """Mean score."""
        return self.score / self.n if self.n else None

    @property
    def score_sd(self) -> float | None:
        """Standard deviation of the scores."""
        if not self.n:
            return None
        return sqrt(max(0.0, self.score_squared / self.n - (self.score / self.n) ** 2))

    def merge(self, later: HistoryPoint) -> HistoryPoint:
        """This point and the next as one."""
        steps = [self.first_step, later.first_step], [later.last_step, self.last_step]
        first, last = (next((step for step in both if step is not None), None) for both in steps)
        sums = (getattr(self, name) + getattr(later, name) for name in _SUMS)
        return HistoryPoint(first, last, *sums)


_SUMS = ("n", "score", "score_squared", "reward", "log_tokens", "n_tokens", "kl", "n_kl", "gap", "n_gap")


@dataclass(slots=True)
class RunHistory:
    """The points of a run, in the order of their samples. Each but the last covers at least `span` steps or as many parts."""

    points: list[HistoryPoint] = field(default_factory=list)
    span: int = 1

    def add(self, step: int | None, samples: Sequence[SampleFeatures], kl: float | None = None) -> None:
        """Count samples of one request."""
        if not samples:
            return
        point = self._point_of(step)
        for each in samples:
            point.n += 1
            point.score += each.score
            point.score_squared += each.score * each.score
            point.reward += each.reward
            if each.traits:
                point.log_tokens += each.traits[_LENGTH]
                point.n_tokens += 1
        if kl is not None:
            point.kl += kl
            point.n_kl += 1

    def add_gap(self, gap: float) -> None:
        """Count score minus audit of one sample, at the newest point."""
        if self.points:
            self.points[-1].gap += gap
            self.points[-1].n_gap += 1

    def _point_of(self, step: int | None) -> HistoryPoint:
        newest = self.points[-1] if self.points else None
        if newest is not None and self._has_room(newest, step):
            newest.last_step = step if step is not None and (newest.last_step or 0) <= step else newest.last_step
            return newest
        if len(self.points) >= MAX_POINTS:
            self.points = [a.merge(b) for a, b in _neighbours(self.points)]
            self.span *= 2
        self.points.append(HistoryPoint(step, step))
        return self.points[-1]

    def _has_room(self, point: HistoryPoint, step: int | None) -> bool:
        if step is None or point.first_step is None or point.last_step is None:
            return step is None and point.n < _WITHOUT_STEP * self.span
        return step <= point.last_step or step < point.first_step + self.span


def _neighbours(points: Sequence[HistoryPoint]) -> Iterable[tuple[HistoryPoint, HistoryPoint]]:
    return zip(points[::2], points[1::2], strict=True)

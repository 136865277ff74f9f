"""Samples grouped by prompt, and comparisons of recent with early samples within strata of prompts that are alike. Pure.

A set of samples is an integer: bit i is set where sample i belongs to it. Shares and means are over samples, their standard
errors over prompts.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import inf, sqrt
from typing import NamedTuple

from rewardserve.service.tripwires.attribution.effects import MIN_PROMPTS, Effect, effective_number, estimate


class Clusters(NamedTuple):
    """The prompts of some samples: the samples of each, their number, and the stratum of the prompt."""

    samples: tuple[int, ...]
    sizes: tuple[int, ...]
    strata: tuple[int, ...]

    def counts(self, event: int) -> list[float]:
        """Number of each prompt's samples that belong to `event`."""
        return [float((event & samples).bit_count()) for samples in self.samples]

    def totals(self, values: Sequence[float]) -> list[float]:
        """Sum of the values of each prompt's samples."""
        return [sum([values[place] for place in _places(samples)]) for samples in self.samples]

    def without(self, event: int) -> Clusters:
        """The prompts with only those samples that do not belong to `event`; prompts without such samples left out."""
        left = [
            (rest, rest.bit_count(), stratum)
            for samples, stratum in zip(self.samples, self.strata, strict=True)
            if (rest := samples & ~event)
        ]
        return Clusters(*zip(*left, strict=True)) if left else Clusters((), (), ())


def _places(samples: int) -> Iterator[int]:
    """The places of the bits that are set, in order."""
    while samples:
        lowest = samples & -samples
        yield lowest.bit_length() - 1
        samples ^= lowest


def cluster(prompt_keys: Sequence[int], strata: Mapping[int, int] | None = None) -> Clusters:
    """Group samples by prompt; `strata` maps a prompt to its stratum, one for all where it is left out."""
    samples: dict[int, int] = {}
    for index, key in enumerate(prompt_keys):
        samples[key] = samples.get(key, 0) | 1 << index
    return Clusters(
        tuple(samples.values()),
        tuple(mask.bit_count() for mask in samples.values()),
        tuple(strata.get(key, 0) if strata else 0 for key in samples),
    )


class _Spread(NamedTuple):
    """A mean, and the sum over the prompts of the squares of its residuals."""

    mean: float
    squares: float


class _Side(NamedTuple):
    """The prompts of one side of a stratum: their indices, their samples, and the number of these in all and for each."""

    prompts: tuple[int, ...]
    samples: int
    n: int
    sizes: tuple[int, ...]
    effective: float

    def mean(self, totals: Sequence[float]) -> float:
        return sum([totals[index] for index in self.prompts]) / self.n

    def residuals(self, totals: Sequence[float], mean: float) -> list[float]:
        """Sums over each prompt of value less mean: the terms of the cluster-robust variance of the mean."""
        return [totals[index] - mean * size for index, size in zip(self.prompts, self.sizes, strict=True)]

    def spread(self, totals: Sequence[float]) -> _Spread:
        mean = self.mean(totals)
        return _Spread(mean, sum([value * value for value in self.residuals(totals, mean)]))

    def spread_of_event(self, event: int, samples: Sequence[int]) -> _Spread:
        """The same of the share of samples that belong to an event; `samples` are those of each prompt."""
        count = (event & self.samples).bit_count()
        mean = count / self.n
        if self.n == len(self.prompts):  # one sample each, so each prompt is in the event or not
            return _Spread(mean, count * (1.0 - mean) ** 2 + (self.n - count) * mean**2)
        counts = [(event & samples[index]).bit_count() for index in self.prompts]
        rests = [n - mean * size for n, size in zip(counts, self.sizes, strict=True)]
        return _Spread(mean, sum([rest * rest for rest in rests]))


class _Stratum(NamedTuple):
    early: _Side
    recent: _Side
    weight: float


class StratifiedComparison:
    """Recent against early samples within strata, weighted as Cochran (1954) does: n_early n_recent / (n_early + n_recent)."""

    def __init__(self, early: Clusters, recent: Clusters) -> None:
        """Keep the strata that have at least `MIN_PROMPTS` prompts (effective number) on both sides."""
        self.early, self.recent = early, recent
        strata = sorted(set(early.strata) & set(recent.strata))
        sides = [(_side(early, each), _side(recent, each)) for each in strata]
        kept = [pair for pair in sides if min(pair[0].effective, pair[1].effective) >= MIN_PROMPTS]
        weights = [before.n * after.n / (before.n + after.n) for before, after in kept]
        self.strata = [_Stratum(*pair, weight / sum(weights)) for pair, weight in zip(kept, weights, strict=True)]
        self.comparable = sum(after.n for _, after in kept) / max(1, sum(recent.sizes))

    def rough_growth(self, early_event: int, recent_event: int) -> float:
        """Growth of the share of samples that belong to an event, without its standard error: fast."""
        return sum(
            each.weight
            * (
                (recent_event & each.recent.samples).bit_count() / each.recent.n
                - (early_event & each.early.samples).bit_count() / each.early.n
            )
            for each in self.strata
        )

    def growth(self, early_event: int, recent_event: int) -> Effect:
        """Growth of the share of samples that belong to an event."""
        before, after = self.early.samples, self.recent.samples
        return self._effect(
            [
                (each.early.spread_of_event(early_event, before), each.recent.spread_of_event(recent_event, after))
                for each in self.strata
            ]
        )

    def difference(self, early: Sequence[float], recent: Sequence[float]) -> Effect:
        """Mean of recent less mean of early samples; `early` and `recent` have the total of each prompt."""
        return self._effect([(each.early.spread(early), each.recent.spread(recent)) for each in self.strata])

    def _effect(self, spreads: Sequence[tuple[_Spread, _Spread]]) -> Effect:
        """The difference of these means of each stratum.

        The variance is the larger of that with a spread for each side and of that with one for both: without growth the two
        sides have one distribution, and a share that was zero has no spread that could be measured.
        """
        if not self.strata:
            return estimate(0.0, inf, 0, 0)
        mean = variance = df = 0.0
        for (before, after, weight), (early, recent) in zip(self.strata, spreads, strict=True):
            k, m = len(before.prompts), len(after.prompts)
            apart = early.squares * k / (k - 1) / before.n**2 + recent.squares * m / (m - 1) / after.n**2
            both = early.squares + recent.squares
            pooled = both * (k + m) / (k + m - 2) / (before.n + after.n) * (1 / before.n + 1 / after.n)
            mean += weight * (recent.mean - early.mean)
            variance += weight**2 * max(apart, pooled)
            df += before.effective + after.effective - 2.0
        return estimate(mean, sqrt(variance), df, sum(each.early.n + each.recent.n for each in self.strata))

    def mean_early(self, early: Sequence[float]) -> float:
        """Mean of early samples, with the weights of the strata."""
        return sum(each.weight * each.early.mean(early) for each in self.strata)

    def covariance(self, early: Sequence[Sequence[float]], recent: Sequence[Sequence[float]]) -> float:
        """Covariance of two differences; `early` and `recent` have two totals for each prompt, (2, n_prompts)."""
        return sum(
            each.weight**2 * (_covariance(each.early, early) + _covariance(each.recent, recent)) for each in self.strata
        )


def _covariance(side: _Side, totals: Sequence[Sequence[float]]) -> float:
    """Covariance of the means of two values."""
    first, second = (side.residuals(each, side.mean(each)) for each in totals)
    k = len(side.prompts)
    return sum([a * b for a, b in zip(first, second, strict=True)]) * k / (k - 1) / side.n**2


def _side(clusters: Clusters, stratum: int) -> _Side:
    prompts = tuple(index for index, each in enumerate(clusters.strata) if each == stratum)
    sizes = tuple(clusters.sizes[index] for index in prompts)
    # Bits of different prompts are different: their sum is their union.
    return _Side(prompts, sum(clusters.samples[index] for index in prompts), sum(sizes), sizes, effective_number(sizes))

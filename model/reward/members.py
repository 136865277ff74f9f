"""Calibrate and combine the named heads of a sample into one number.

A member is a unit with one calibration: a model, or a head of a model. Each member's score is normalised on its frozen
scale, then the members are combined. Pure; standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import exp, expm1, inf, log1p, sqrt
from typing import Literal

from rewardserve.model.scorer import HeadScores, weighted_sum

CombineMethod = Literal["sum", "mean", "min", "softmin", "and"]


@dataclass(frozen=True, slots=True)
class Scale:
    """The frozen statistics of one member's raw scores: z = (raw - mean) / std.

    `temperature` divides raw differences in the Bradley-Terry probability.
    """

    mean: float
    std: float
    temperature: float = 1.0


IDENTITY = Scale(0.0, 1.0)
"""Scale of a member that is not normalised."""


@dataclass(frozen=True, slots=True)
class ScaledMember:
    """One member: `raw` is the weighted sum of its heads. `weight` is its share among the members."""

    name: str
    heads: tuple[tuple[str, float], ...]
    scale: Scale = IDENTITY
    weight: float = 1.0

    def raw(self, scores: HeadScores) -> float:
        """Raw score: the weighted sum of the heads. Raise `KeyError` where a head is missing."""
        return weighted_sum(self.heads, scores)


@dataclass(frozen=True, slots=True)
class CombinedScores:
    """Columns, one entry a sample. `spread` is None for a single member."""

    raw: list[float]
    value: list[float]
    spread: list[float] | None = None


@dataclass(frozen=True, slots=True)
class Combination:
    """Members and the method of their combination. Their weights sum to 1; `beta` is that of softmin.

    `sum` is for one member: its heads are summed with their weights, and the sum is normalised on its scale.
    """

    members: tuple[ScaledMember, ...]
    method: CombineMethod = "sum"
    beta: float = 0.5

    def __call__(self, heads: Sequence[HeadScores]) -> CombinedScores:
        """Calibrate and combine a column of samples. Raise `KeyError` where a head is missing."""
        if self.method == "sum":
            (member,) = self.members
            raw = [member.raw(scores) for scores in heads]
            mean, std = member.scale.mean, member.scale.std
            return CombinedScores(raw, [(score - mean) / std for score in raw])
        z_BK = [[(m.raw(scores) - m.scale.mean) / m.scale.std for m in self.members] for scores in heads]
        weights = [member.weight for member in self.members]
        combine = COMBINE[self.method]
        value = [combine(z_K, weights, self) for z_K in z_BK]
        return CombinedScores(value, value, [_spread(z_K) for z_K in z_BK])

    @property
    def component_names(self) -> tuple[str, ...]:
        """Names of the reward's components: the members, or the heads of a single member; none where there is only one."""
        names = (
            [member.name for member in self.members] if self.method != "sum" else [n for n, _ in self.members[0].heads]
        )
        return tuple(names) if len(names) > 1 else ()

    def components(self, scores: HeadScores) -> tuple[float, ...]:
        """Weighted contribution of each of `component_names`, on the frozen scale."""
        if self.method == "sum":
            (member,) = self.members
            return tuple([weight * scores[name] / member.scale.std for name, weight in member.heads])
        return tuple([m.weight * (m.raw(scores) - m.scale.mean) / m.scale.std for m in self.members])

    @property
    def temperature(self) -> float:
        """Divisor of a difference of `raw` in the Bradley-Terry probability."""
        return self.members[0].scale.temperature if self.method == "sum" else 1.0 / self.logit_scale

    @property
    def logit_scale(self) -> float:
        """Factor from a difference of combined scores to the log odds of Bradley and Terry (1952)."""
        return sum(m.weight * m.scale.std / m.scale.temperature for m in self.members)


def mean(z_K: Sequence[float], weights: Sequence[float], _: Combination) -> float:
    """The weighted mean."""
    return sum([w * z for w, z in zip(weights, z_K, strict=True)])


def minimum(z_K: Sequence[float], _weights: Sequence[float], _: Combination) -> float:
    """The lowest member: worst-case optimisation (Coste et al. 2310.02743)."""
    return min(z_K)


def softmin(z_K: Sequence[float], weights: Sequence[float], combination: Combination) -> float:
    """`-beta log sum_k w_k exp(-z_k / beta)`: `min` for beta -> 0, the mean for beta -> infinity (exactly, at both).

    To the second order it is mean - var / (2 beta), the uncertainty-weighted optimum of Coste et al. with
    lambda = 1 / (2 beta). Written with the smallest z taken out, so that nothing overflows and a large beta loses nothing.
    """
    if combination.beta == inf:
        return mean(z_K, weights, combination)
    low = min(z_K)
    if combination.beta == 0.0:
        return low
    excess = sum([w * expm1((low - z) / combination.beta) for w, z in zip(weights, z_K, strict=True)])
    return low - combination.beta * log1p(excess)


def sum_log_sigmoid(z_K: Sequence[float], weights: Sequence[float], combination: Combination) -> float:
    """`sum_k w_k log sigmoid((raw_k - mean_k) / T_k)`: near the log probability that a response is good in every respect
    (Wang et al. 2402.00742). With equal weights it is the sum of the log sigmoids divided by the number of members.
    """
    scales = [member.scale for member in combination.members]
    return sum([w * log_sigmoid(z * s.std / s.temperature) for w, z, s in zip(weights, z_K, scales, strict=True)])


COMBINE: Mapping[str, Callable[[Sequence[float], Sequence[float], Combination], float]] = {
    "mean": mean,
    "min": minimum,
    "softmin": softmin,
    "and": sum_log_sigmoid,
}


def sigmoid(x: float) -> float:
    """`1 / (1 + exp(-x))`, without overflow for any finite x."""
    return 1.0 / (1.0 + exp(-x)) if x >= 0 else exp(x) / (1.0 + exp(x))


def log_sigmoid(x: float) -> float:
    """`log(sigmoid(x))`, exact far out on either side."""
    return -log1p(exp(-x)) if x >= 0 else x - log1p(exp(x))


def _spread(z_K: Sequence[float]) -> float:
    middle = sum(z_K) / len(z_K)
    return sqrt(sum([(z - middle) ** 2 for z in z_K]) / len(z_K))

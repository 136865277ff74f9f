"""Means, differences and ratios with intervals that count prompts, because samples of one prompt are not independent. Pure.

Means are over samples. Their standard errors come from the spread of the sums of prompts (the cluster-robust, or sandwich,
variance: Liang and Zeger 1986), so correlation within a prompt is measured, not assumed. Intervals are of 95 % by Student's t
with the effective number of prompts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from math import copysign, erfc, exp, inf, log1p, sqrt
from statistics import NormalDist
from typing import NamedTuple

MIN_PROMPTS = 8
"""Fewest prompts on each side of a comparison, by their effective number: fewer have no distribution to speak of."""

_Z_95 = 1.959964


class Effect(NamedTuple):
    """An estimate with its 95 % interval from `low` to `high`, from `n` samples; `df` are its degrees of freedom."""

    mean: float
    low: float
    high: float
    n: int
    std_error: float
    df: float

    @property
    def t(self) -> float:
        """Estimate over standard error; infinite where a difference has no spread at all."""
        if self.std_error > 0.0:
            return self.mean / self.std_error
        return copysign(inf, self.mean) if self.mean else 0.0


def estimate(mean: float, std_error: float, df: float, n: int) -> Effect:
    """An estimate with the interval that its standard error and degrees of freedom give."""
    half = t_quantile(df) * std_error if df > 0 else inf
    return Effect(mean, mean - half, mean + half, n, std_error, df)


def effect(differences: Sequence[float], prompt_keys: Sequence[int]) -> Effect:
    """Mean of differences of paired scores, with an interval by prompts.

    `differences` (n,) are score(edited) - score(original), in standard deviations of early scores; `prompt_keys` (n,). Fewer
    than two prompts have an infinite interval. Raises ValueError where the lengths differ.
    """
    n, by_prompt = len(differences), defaultdict(list)
    for difference, key in zip(differences, prompt_keys, strict=True):
        by_prompt[key].append(difference)
    mean, n_prompts = sum(differences) / max(1, n), len(by_prompt)
    if n_prompts < 2:
        return Effect(mean, -inf, inf, n, inf, 0)
    squares = sum([sum([value - mean for value in values]) ** 2 for values in by_prompt.values()])
    variance = squares * n_prompts / (n_prompts - 1) / n**2
    df = effective_number([len(values) for values in by_prompt.values()]) - 1.0
    return estimate(mean, sqrt(variance), df, n)


def effective_number(sizes: Sequence[int]) -> float:
    """Number of prompts of equal size that carry as much as those of different `sizes` (Kish 1965)."""
    return sum(sizes) ** 2 / sum([size * size for size in sizes]) if sizes else 0.0


def paid(scores: Sequence[float], prompt_keys: Sequence[int], event: int, std: float) -> Effect | None:
    """Difference of mean score of samples with and without a feature, in units of `std`.

    `scores` (n,), `prompt_keys` (n,), bit i of `event` says that sample i has the feature. The variance is that of a regression
    on the indicator, clustered by prompts (Cameron and Miller 2015, "A Practitioner's Guide to Cluster-Robust Inference"),
    the degrees of freedom are those of the side with fewer prompts. None where a side has fewer than `MIN_PROMPTS` prompts.
    """
    has = [event >> index & 1 for index in range(len(scores))]
    sizes: list[dict[int, int]] = [defaultdict(int), defaultdict(int)]
    totals = [0.0, 0.0]
    for score, key, side in zip(scores, prompt_keys, has, strict=True):
        sizes[side][key] += 1
        totals[side] += score
    n_prompts = min(effective_number(tuple(each.values())) for each in sizes)
    if n_prompts < MIN_PROMPTS or std <= 0.0:
        return None
    n = [sum(each.values()) for each in sizes]
    means = [total / each for total, each in zip(totals, n, strict=True)]
    influence: dict[int, float] = defaultdict(float)
    for score, key, side in zip(scores, prompt_keys, has, strict=True):
        influence[key] += (score - means[side]) / n[side] * (1 if side else -1)
    variance = len(influence) / (len(influence) - 1) * sum([value * value for value in influence.values()])
    return estimate((means[1] - means[0]) / std, sqrt(variance) / std, n_prompts - 1.0, len(scores))


def explained_share(earned: Effect, growth: Effect, score_growth: Effect, covariance: float = 0.0) -> Effect:
    """Share of the growth of the mean score that a feature explains: `earned * growth / score_growth`.

    `earned` is the causal effect of the feature on one response and `score_growth` the growth of the mean score, in one
    unit; `growth` is the growth of the feature's share, `covariance` that of the estimates `growth` and `score_growth`. The
    variance of the product is that of independent factors (Goodman 1960), the interval of the ratio is Fieller's ("Some
    Problems in Interval Estimation", JRSS B 16, 1954): it is infinite where the growth of the score may be zero.
    """
    product, a, b, c = earned.mean * growth.mean, earned.std_error, growth.std_error, score_growth.std_error
    df = min(earned.df, growth.df, score_growth.df)
    ratio = product / score_growth.mean if score_growth.mean else 0.0
    if not (df > 0 and a < inf and b < inf and c < inf):
        return Effect(ratio, -inf, inf, earned.n, inf, 0)
    variance = (earned.mean * b) ** 2 + (growth.mean * a) ** 2 + (a * b) ** 2
    shared, t2 = earned.mean * covariance, t_quantile(df) ** 2
    leading = score_growth.mean**2 - t2 * c * c
    if leading <= 0.0:
        return Effect(ratio, -inf, inf, earned.n, inf, df)
    middle = product * score_growth.mean - t2 * shared
    root = sqrt(max(0.0, middle**2 - leading * (product**2 - t2 * variance)))
    spread = sqrt(max(0.0, variance - 2.0 * ratio * shared + (ratio * c) ** 2)) / abs(score_growth.mean)
    return Effect(ratio, (middle - root) / leading, (middle + root) / leading, earned.n, spread, df)


def t_quantile(df: float, z: float = _Z_95) -> float:
    """Quantile of Student's t where the normal distribution has `z`, by the inverse of `z_of_t`."""
    scaled = z * (8.0 * df + 3.0) / (8.0 * df + 1.0)
    return sqrt(df * (exp(min(scaled * scaled / df, 700.0)) - 1.0))


def z_of_t(t: float, df: float) -> float:
    """Normal quantile of the same probability as Student's t (Wallace 1959, within 1 % from 4 degrees of freedom on)."""
    if df <= 0.0 or t in (inf, -inf):
        return copysign(40.0, t) if df > 0.0 else 0.0
    return copysign(sqrt(df * log1p(t * t / df)) * (8.0 * df + 1.0) / (8.0 * df + 3.0), t)


def corrected_z(z: float, n_tests: int) -> float:
    """Normal quantile of a two-sided probability after Bonferroni's correction for `n_tests`; 0 where it reaches 1."""
    probability = min(1.0, n_tests * erfc(abs(z) / sqrt(2.0)))
    return copysign(-NormalDist().inv_cdf(max(probability, 1e-300) / 2.0), z) if probability < 1.0 else 0.0

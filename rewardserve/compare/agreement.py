"""Measure how far two reward models agree on the same responses, and which of them agrees with the labels.

Pure functions of arrays (numpy only). Confidence intervals are of 95 % and resample whole prompts, since responses to one prompt
are not independent. Shapes: N responses, P pairs, G prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rewardserve.training.evaluation.evaluate import Floats, Ints, interval, pearson, ranks, wins

N_BOOTSTRAP = 2_000
LEAST_RANKED = 3
"""Fewest responses to one prompt for a rank correlation: with two it is always 1 or -1."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over pairs, with its confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Accuracy:
    """Share of pairs in which each model scores the chosen response higher; a tie counts half. `difference` is B minus A, paired.

    The four numbers count pairs; here a tie counts as wrong.
    """

    a: Estimate
    b: Estimate
    difference: Estimate
    n_both_right: int
    n_only_a: int
    n_only_b: int
    n_neither: int


@dataclass(frozen=True, slots=True)
class Agreement:
    """Agreement of two models on the responses that both have scored.

    `disagreement` is the share of pairs of responses to one prompt (of the labelled pairs, if there are labels) that the
    models order differently; a tie of one of them counts half. `spearman` is over all responses, `spearman_within` the mean
    over the `n_ranked_prompts` prompts with three responses or more; None if a model gives all the same score.
    """

    n_responses: int
    n_prompts: int
    n_pairs: int
    accuracy: Accuracy | None
    disagreement: Estimate | None
    spearman: float | None
    spearman_within: float | None
    n_ranked_prompts: int


def agreement(
    a_N: Floats, b_N: Floats, prompt_N: Ints, pairs: Sequence[tuple[int, int, int]], *, n_bootstrap: int = N_BOOTSTRAP
) -> Agreement:
    """Compare the scores of two models; NaN for a response without one. `pairs`: `(chosen, rejected, prompt)`, or empty."""
    is_scored_N = np.isfinite(a_N) & np.isfinite(b_N)
    scored = np.flatnonzero(is_scored_N)
    a, b = a_N[scored], b_N[scored]
    of_prompt = _grouped(prompt_N[scored])
    ranked = [spearman(a[numbers], b[numbers]) for numbers in of_prompt if len(numbers) >= LEAST_RANKED]
    within = [rho for rho in ranked if rho is not None]
    labelled = [pair for pair in pairs if is_scored_N[pair[0]] and is_scored_N[pair[1]]]
    accuracy = None
    if pairs:
        n_pairs, accuracy, disagreement = _of_pairs(a_N, b_N, labelled, n_bootstrap)
    else:
        n_pairs, disagreement = _of_prompts(a, b, of_prompt, n_bootstrap)
    return Agreement(
        n_responses=len(scored),
        n_prompts=len(of_prompt),
        n_pairs=n_pairs,
        accuracy=accuracy,
        disagreement=disagreement,
        spearman=spearman(a, b),
        spearman_within=float(np.mean(within)) if within else None,
        n_ranked_prompts=len(within),
    )


def spearman(a_N: Floats, b_N: Floats) -> float | None:
    """Compute the rank correlation; None if the scores of a model do not vary."""
    if len(a_N) < 2 or not (np.ptp(a_N) > 0 and np.ptp(b_N) > 0):
        return None
    return pearson(ranks(a_N), ranks(b_N))


def _of_pairs(
    a_N: Floats, b_N: Floats, pairs: Sequence[tuple[int, int, int]], n_bootstrap: int
) -> tuple[int, Accuracy | None, Estimate | None]:
    """Compare labelled pairs: their number, the accuracy of each model, and how often the models differ."""
    if not pairs:
        return 0, None, None
    chosen, rejected, prompt_P = np.array(pairs).T
    diff_a, diff_b = a_N[chosen] - a_N[rejected], b_N[chosen] - b_N[rejected]
    won_a, won_b = wins(diff_a), wins(diff_b)
    right_a, right_b = diff_a > 0, diff_b > 0
    accuracy = Accuracy(
        a=_mean(won_a, prompt_P, 0.0, 1.0, n_bootstrap),
        b=_mean(won_b, prompt_P, 0.0, 1.0, n_bootstrap),
        difference=_mean(won_b - won_a, prompt_P, -1.0, 1.0, n_bootstrap),
        n_both_right=int((right_a & right_b).sum()),
        n_only_a=int((right_a & ~right_b).sum()),
        n_only_b=int((right_b & ~right_a).sum()),
        n_neither=int((~right_a & ~right_b).sum()),
    )
    return len(pairs), accuracy, _mean(np.abs(won_a - won_b), prompt_P, 0.0, 1.0, n_bootstrap)


def _mean(value_P: Floats, prompt_P: Ints, low: float, high: float, n_bootstrap: int) -> Estimate:
    _, number_P = np.unique(prompt_P, return_inverse=True)
    sum_G = np.bincount(number_P, weights=value_P).astype(np.float64)
    return Estimate(float(value_P.mean()), *interval(sum_G, np.bincount(number_P), low, high, n_bootstrap))


def _grouped(prompt_N: Ints) -> list[Ints]:
    """Group the indices of responses by prompt."""
    if not len(prompt_N):
        return []
    order = np.argsort(prompt_N, kind="stable")
    return list(np.split(order, np.flatnonzero(np.diff(prompt_N[order])) + 1))


def _of_prompts(a_N: Floats, b_N: Floats, of_prompt: Sequence[Ints], n_bootstrap: int) -> tuple[int, Estimate | None]:
    """Compare all pairs of responses to one prompt: their number, and how often the models order them differently."""
    several = [numbers for numbers in of_prompt if len(numbers) > 1]
    if not several:
        return 0, None
    size_G = np.array([len(numbers) * (len(numbers) - 1) // 2 for numbers in several])
    sum_G = np.array([_n_differing(a_N[numbers], b_N[numbers]) for numbers in several])
    value = float(sum_G.sum() / size_G.sum())
    return int(size_G.sum()), Estimate(value, *interval(sum_G, size_G, 0.0, 1.0, n_bootstrap))


def _n_differing(a_N: Floats, b_N: Floats) -> float:
    """Count the pairs that the models order differently."""
    return sum(
        float(np.abs(wins(a_N[i] - a_N[i + 1 :]) - wins(b_N[i] - b_N[i + 1 :])).sum()) for i in range(len(a_N) - 1)
    )

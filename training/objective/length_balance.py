"""Weight pairs so that the length of a response does not say which one is preferred. Pure; independent of torch.

Among pairs with about the same difference in length, the pairs in which the longer response won weigh as much together as those
in which the shorter one won. Without this, a judge learns length wherever raters or the sampling of pairs favour it.
"""

from __future__ import annotations

from dataclasses import replace
from math import log

import numpy as np

from rewardserve.training.dataset.feedback import Pair
from rewardserve.training.dataset.sequences import FeedbackTable

N_BINS = 8
"""Bins of the difference in length, with equal numbers of pairs."""

MAX_WEIGHT = 8.0
"""Limit of the weight of a pair, relative to that of others in its bin: a few pairs must not decide alone."""


def balanced(table: FeedbackTable) -> FeedbackTable:
    """The table with the weights of its pairs multiplied; the sum of a head's weights stays, and so does other feedback."""
    factors, items = np.ones(len(table)), table.items
    for head in {pair.head for pair in table.pairs}:
        numbers = [i for i, item in enumerate(items) if item.kind == "pairs" and item.head == head]
        weights = np.array([items[i].weight for i in numbers])
        factor = _factors(np.array([_difference(table, i) for i in numbers]), weights)
        factors[numbers] = factor * weights.sum() / (factor * weights).sum()
    weighed = (
        replace(item, weight=item.weight * factor) if isinstance(item, Pair) else item
        for item, factor in zip(items, factors.tolist(), strict=True)
    )
    return replace(table, items=tuple(weighed))


def _difference(table: FeedbackTable, pair: int) -> float:
    """Logarithm of the ratio of the lengths, in tokens."""
    chosen, rejected = (table.sequences[number].n_response for number in table.rows[pair])
    return log(max(chosen, 1) / max(rejected, 1))


def _factors(difference_P: np.ndarray, weight_P: np.ndarray) -> np.ndarray:
    factor_P = np.ones(len(difference_P))
    size_P = np.abs(difference_P)
    edges = np.unique(np.quantile(size_P, np.arange(1, N_BINS) / N_BINS)) if len(size_P) else size_P
    bin_P = np.digitize(size_P, edges)  # equal differences are in one bin
    for number in np.unique(bin_P):
        numbers = np.flatnonzero(bin_P == number)
        longer, shorter = difference_P[numbers] > 0, difference_P[numbers] < 0
        sums = [weight_P[numbers][side].sum() for side in (longer, shorter)]
        for side, own in zip((longer, shorter), sums, strict=True):
            if own > 0:
                factor_P[numbers[side]] = min(MAX_WEIGHT, sum(sums) / (2.0 * own))
    return factor_P

"""Accuracy and calibration of a head on held-out pairs, beside the accuracy of a length rule on the same pairs.

Pure functions of arrays (numpy only); independent of networks and files. Shapes: P pairs, N responses, H heads, G
groups.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rewardserve.training.dataset.feedback import with_noun
from rewardserve.training.dataset.sequences import FeedbackTable
from rewardserve.training.evaluation.calibrate import sigmoid, temperature

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
MOST_BINS = 15
PAIRS_A_BIN = 10
COMBINED = "(combined)"
ALL = "(all)"
ONE_GROUP = "; one group says next to nothing about others: hold out more (data.eval_fraction, data.eval_sources)"
"""Ends a line of figures of one group."""


@dataclass(frozen=True, slots=True)
class ScoredPairs:
    """Scored pairs of one slice. `chars` are lengths of the responses' texts; `group` numbers the groups.

    `score_N` and `tokens_N` are those of the distinct responses of the slice.
    """

    head: str
    source: str
    chosen_P: Floats
    rejected_P: Floats
    chosen_chars_P: Floats
    rejected_chars_P: Floats
    group_P: Floats
    score_N: Floats
    tokens_N: Floats

    @property
    def diff_P(self) -> Floats:
        """Chosen minus rejected."""
        return self.chosen_P - self.rejected_P


@dataclass(frozen=True, slots=True)
class SliceMetrics:
    """One line of the report. A tie counts half. `accuracy_low` and `_high`: bootstrap over groups, 95 %.

    `longer` and `shorter` are the accuracies of choosing the longer or the shorter text. `longer_chosen` and `shorter_chosen` are
    those of the model where the chosen text is the longer or the shorter one, and `length_balanced` is their mean; None without
    such pairs. The `_calibrated` figures use a
    temperature that was fitted on the other half of the groups (`temperature`: on all of them).
    """

    head: str
    source: str
    n_pairs: int
    n_groups: int
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    longer: float
    shorter: float
    margin: float
    nll: float
    ece: float
    temperature: float
    nll_calibrated: float
    ece_calibrated: float
    length_pearson: float
    length_spearman: float
    longer_chosen: float | None
    shorter_chosen: float | None
    length_balanced: float | None


def summary_lines(metrics: Sequence[SliceMetrics]) -> list[str]:
    """The lines that end `train`, `finish`, `calibrate`, `evaluate` and `crossvalidate`: one a slice of the held-out pairs."""
    if not metrics:
        return ["held out: no pairs, so there is no accuracy"]
    return [
        f"held out, {m.head} {m.source}: accuracy {m.accuracy:.3f} [{m.accuracy_low:.3f}, {m.accuracy_high:.3f}] of "
        f"{with_noun(m.n_pairs, 'pair')} in {with_noun(m.n_groups, 'group')}, "
        f"mean margin {m.margin:.3g}; longer text wins {m.longer:.3f}" + ONE_GROUP * (m.n_groups == 1)
        for m in metrics
    ]


def slice_metrics(judged: ScoredPairs, *, n_bootstrap: int = 1000) -> SliceMetrics:
    """Compute all figures of one slice."""
    diff_P = judged.diff_P
    won_P = wins(diff_P)
    low, high = bootstrap_accuracy(won_P, judged.group_P, n_bootstrap)
    extra_P = judged.chosen_chars_P - judged.rejected_chars_P
    longer_P = wins(extra_P)
    by_length = [float(won_P[side_P].mean()) if side_P.any() else None for side_P in (extra_P > 0, extra_P < 0)]
    cooled_P = cross_fitted(diff_P, judged.group_P)
    log_tokens_N = np.log(judged.tokens_N)
    return SliceMetrics(
        head=judged.head,
        source=judged.source,
        n_pairs=len(diff_P),
        n_groups=len(np.unique(judged.group_P)),
        accuracy=float(won_P.mean()),
        accuracy_low=low,
        accuracy_high=high,
        longer=float(longer_P.mean()),
        shorter=float(1 - longer_P.mean()),
        margin=float(diff_P.mean()),
        nll=nll(diff_P),
        ece=ece(diff_P),
        temperature=temperature(diff_P),
        nll_calibrated=nll(cooled_P),
        ece_calibrated=ece(cooled_P),
        length_pearson=pearson(judged.score_N, log_tokens_N),
        length_spearman=pearson(ranks(judged.score_N), ranks(log_tokens_N)),
        longer_chosen=by_length[0],
        shorter_chosen=by_length[1],
        length_balanced=_mean_of_both(*by_length),
    )


def _mean_of_both(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else (a + b) / 2


def slices(
    table: FeedbackTable, scores_NH: Floats, head_names: Sequence[str], weights: Sequence[float]
) -> list[ScoredPairs]:
    """Each head on the pairs that train it, by source and together; with several heads, the combined score on all."""
    heads = np.array([p.head for p in table.items])
    sources = np.array([p.source for p in table.items])
    found: list[ScoredPairs] = []
    for h, head in enumerate(head_names):
        own_P = heads == head
        names = sorted(set(sources[own_P].tolist()))
        for name in names:
            found.append(_slice(table, scores_NH[:, h], own_P & (sources == name), head, name))
        if len(names) > 1:
            found.append(_slice(table, scores_NH[:, h], own_P, head, ALL))
    if len(head_names) > 1 and len(table):
        found.append(_slice(table, scores_NH @ np.asarray(weights), np.ones(len(table), dtype=bool), COMBINED, ALL))
    return found


def cross_slices(
    table: FeedbackTable, scores_NH: Floats, head_names: Sequence[str], weights: Sequence[float]
) -> list[ScoredPairs]:
    """Each head on the pairs of the others, by source; and the combined score on each source."""
    if len(head_names) < 2:
        return []
    heads = np.array([p.head for p in table.items])
    sources = np.array([p.source for p in table.items])
    found: list[ScoredPairs] = []
    for h, head in enumerate(head_names):
        foreign_P = heads != head
        for name in sorted(set(sources[foreign_P].tolist())):
            found.append(_slice(table, scores_NH[:, h], foreign_P & (sources == name), head, name))
    score_N = scores_NH @ np.asarray(weights)
    names = sorted(set(sources.tolist()))
    return found + [_slice(table, score_N, sources == name, COMBINED, name) for name in names]


def own_head_accuracy(table: FeedbackTable, scores_NH: Floats, head_names: Sequence[str]) -> float:
    """Accuracy on all pairs of a table, each judged by the head that its source trains. A tie counts half."""
    return float(wins(_own_head_diffs(table, scores_NH, head_names)).mean())


def overall(table: FeedbackTable, scores_NH: Floats, head_names: Sequence[str]) -> dict[str, float]:
    """Accuracy and NLL over all pairs, each judged by its own head: the figures by which the best step is chosen."""
    accuracy = own_head_accuracy(table, scores_NH, head_names)
    return {"accuracy": accuracy, "nll": nll(_own_head_diffs(table, scores_NH, head_names))}


def _own_head_diffs(table: FeedbackTable, scores_NH: Floats, head_names: Sequence[str]) -> Floats:
    number_of_head = {name: h for h, name in enumerate(head_names)}
    head_P = [number_of_head[pair.head] for pair in table.items]
    diff_P: Floats = scores_NH[list(table.chosen), head_P] - scores_NH[list(table.rejected), head_P]
    return diff_P


def accuracy_by_group(judged: ScoredPairs) -> Floats:
    """Accuracy of each group, `(G,)`."""
    _, number_P = np.unique(judged.group_P, return_inverse=True)
    won_G: Floats = np.bincount(number_P, weights=wins(judged.diff_P)) / np.bincount(number_P)
    return won_G


def _slice(table: FeedbackTable, score_N: Floats, in_P: Floats, head: str, source: str) -> ScoredPairs:
    numbers = np.flatnonzero(in_P).tolist()
    pairs = [table.items[i] for i in numbers]
    chosen, rejected = ([table.rows[i][k] for i in numbers] for k in (0, 1))
    used = sorted({*chosen, *rejected})
    number_of_group: dict[str, int] = {}
    return ScoredPairs(
        head=head,
        source=source,
        chosen_P=score_N[chosen],
        rejected_P=score_N[rejected],
        chosen_chars_P=np.array([len(pair.texts[0]) for pair in pairs]),
        rejected_chars_P=np.array([len(pair.texts[1]) for pair in pairs]),
        group_P=np.array([number_of_group.setdefault(pair.group, len(number_of_group)) for pair in pairs]),
        score_N=score_N[used],
        tokens_N=np.array([table.sequences[s].n_response for s in used]),
    )


# -- figures ----------------------------------------------------------------------------------------------


def wins(diff_P: Floats) -> Floats:
    """1 where the difference is positive, 0 where it is negative, one half where it is zero."""
    return 0.5 * (1 + np.sign(diff_P))


def nll(diff_P: Floats) -> float:
    """Mean of `log(1 + exp(-diff))`: the Bradley-Terry loss of a pair."""
    return float(np.logaddexp(0, -diff_P).mean())


def n_bins_for(n_pairs: int) -> int:
    """Number of bins of equal mass that this many pairs fill: with fewer than ten pairs, the accuracy of a bin is chance."""
    return max(1, min(MOST_BINS, n_pairs // PAIRS_A_BIN))


def ece(diff_P: Floats, n_bins: int | None = None) -> float:
    """Expected calibration error of `sigmoid(|diff|)` over bins of equal mass."""
    return float(
        sum(n * abs(confidence - accuracy) for confidence, accuracy, n in reliability(diff_P, n_bins)) / len(diff_P)
    )


def reliability(diff_P: Floats, n_bins: int | None = None) -> list[tuple[float, float, int]]:
    """(mean confidence, accuracy, n) of each bin of equal mass, by rising confidence; as many bins as the pairs fill."""
    n_bins = n_bins or n_bins_for(len(diff_P))
    confidence_P, won_P = sigmoid(np.abs(diff_P)), wins(diff_P)
    order = np.argsort(confidence_P, kind="stable")
    bins = [b for b in np.array_split(order, n_bins) if len(b)]
    return [(float(confidence_P[b].mean()), float(won_P[b].mean()), len(b)) for b in bins]


def cross_fitted(diff_P: Floats, group_P: Floats) -> Floats:
    """Differences over a temperature fitted on the other half of the groups."""
    half_P = group_P % 2 == 0
    out_P = np.array(diff_P, dtype=float)
    for mine_P in (half_P, ~half_P):
        if mine_P.any() and (~mine_P).any():
            out_P[mine_P] = diff_P[mine_P] / temperature(diff_P[~mine_P])
    return out_P


def bootstrap_accuracy(won_P: Floats, group_P: Floats, n: int, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the accuracy by a bootstrap over whole groups, as the pairs of one prompt are not independent."""
    _, number_P = np.unique(group_P, return_inverse=True)
    won_G = np.bincount(number_P, weights=won_P).astype(np.float64)
    return interval(won_G, np.bincount(number_P), 0.0, 1.0, n, seed)


def interval(sum_G: Floats, size_G: Ints, low: float, high: float, n: int, seed: int = 0) -> tuple[float, float]:
    """95 % interval of `sum(sum_G) / sum(size_G)`, a mean between `low` and `high`.

    If all groups have the same mean, as one alone has, a bootstrap interval would have no width; then the interval has the
    exact bound for an event that occurred in none of G groups (Clopper and Pearson 1934).
    """
    mean_G = sum_G / size_G
    if np.ptp(mean_G) > 0:
        return bootstrap_mean(sum_G, size_G, n, seed)
    unseen = 1 - 0.025 ** (1 / len(sum_G))
    mean = float(mean_G[0])
    return mean - (mean - low) * unseen, mean + (high - mean) * unseen


def bootstrap_mean(sum_G: Floats, size_G: Ints, n: int, seed: int = 0) -> tuple[float, float]:
    """95 % interval of `sum(sum_G) / sum(size_G)` by a bootstrap over groups."""
    rng = np.random.default_rng(seed)
    drawn = (rng.integers(len(size_G), size=len(size_G)) for _ in range(n))
    means = [sum_G[d].sum() / size_G[d].sum() for d in drawn]
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


def pearson(x_N: Floats, y_N: Floats) -> float:
    """Correlation coefficient; 0 where either does not vary."""
    x, y = x_N - x_N.mean(), y_N - y_N.mean()
    norm = float(np.sqrt((x**2).sum() * (y**2).sum()))
    return float((x * y).sum() / norm) if norm > 0 else 0.0


def ranks(x_N: Floats) -> Floats:
    """Ranks from 1; equal values share the mean of their ranks."""
    _, inverse, counts = np.unique(x_N, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]

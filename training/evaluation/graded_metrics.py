"""Agreement of scores with held-out ratings (Spearman's correlation) and labels (area under the ROC curve).

Pure functions of arrays (numpy only). The accuracy over the pairs in the same feedback is that of `evaluate`. Shapes: N
sequences, I items, G groups.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from rewardserve.training.dataset.feedback import NOUNS, Kind, with_noun
from rewardserve.training.dataset.leakage import prompt_key
from rewardserve.training.dataset.sequences import FeedbackTable
from rewardserve.training.evaluation.evaluate import ONE_GROUP, Floats, Ints, pearson, ranks

_LEAST_OF_PROMPT = 3


@dataclass(frozen=True, slots=True)
class GradedMetrics:
    """Agreement of one head with the ratings or labels of one source. `low` and `high`: bootstrap over groups, 95 %.

    `measure` is `Spearman` for ratings and `AUC` for labels. `within`: the mean over prompts of three or more ratings, weighted by
    their number; None if there is none.
    """

    head: str
    source: str
    kind: Kind
    measure: str
    n: int
    n_groups: int
    value: float
    low: float
    high: float
    within: float | None


def graded_lines(metrics: Sequence[GradedMetrics]) -> list[str]:
    """The lines for the console, after those of the pairs."""
    return [
        f"held out, {m.head} {m.source}: {m.measure} {m.value:.3f} [{m.low:.3f}, {m.high:.3f}] of "
        f"{with_noun(m.n, NOUNS[m.kind])} in {with_noun(m.n_groups, 'group')}"
        f"{'' if m.within is None else f', within prompts {m.within:.3f}'}" + ONE_GROUP * (m.n_groups == 1)
        for m in metrics
    ]


def grade(
    table: FeedbackTable, scores_NH: Floats, head_names: Sequence[str], *, n_bootstrap: int = 1000
) -> list[GradedMetrics]:
    """One line for each head, source and kind of the items of one response."""
    found: dict[tuple[str, str, Kind], list[int]] = {}
    for i, item in enumerate(table.items):
        if item.kind in _MEASURES:
            found.setdefault((item.head, item.source, item.kind), []).append(i)
    return [
        _grade(table, scores_NH[:, head_names.index(head)], numbers, kind, n_bootstrap)
        for (head, source, kind), numbers in sorted(found.items())
    ]


def _grade(table: FeedbackTable, score_N: Floats, numbers: Sequence[int], kind: Kind, n: int) -> GradedMetrics:
    items = [table.items[i] for i in numbers]
    score_I = score_N[[table.rows[i][0] for i in numbers]]
    value_I = np.array([item.values[0] for item in items])
    name, measure = _MEASURES[kind]
    group_I = _numbered([item.group for item in items])
    low, high = _bootstrap(measure, score_I, value_I, group_I, n)
    prompt_I = _numbered([(item.group, prompt_key(item)) for item in items])
    return GradedMetrics(
        head=items[0].head,
        source=items[0].source,
        kind=kind,
        measure=name,
        n=len(items),
        n_groups=int(group_I.max()) + 1,
        value=measure(score_I, value_I),
        low=low,
        high=high,
        within=_within(score_I, value_I, prompt_I) if kind == "ratings" else None,
    )


def spearman(score_I: Floats, value_I: Floats) -> float:
    """Correlation of the ranks; 0 where either does not vary."""
    return pearson(ranks(score_I), ranks(value_I))


def auc(score_I: Floats, value_I: Floats) -> float:
    """Share of the pairs of a good and a bad response in which the good one scores higher; one half without such a pair."""
    good_I = value_I > 0
    n_good, n_bad = int(good_I.sum()), int((~good_I).sum())
    if not n_good or not n_bad:
        return 0.5
    return float((ranks(score_I)[good_I].sum() - n_good * (n_good + 1) / 2) / (n_good * n_bad))


_MEASURES: dict[Kind, tuple[str, Callable[[Floats, Floats], float]]] = {
    "ratings": ("Spearman", spearman),
    "labels": ("AUC", auc),
}


def _numbered(keys: Sequence[object]) -> Ints:
    number: dict[object, int] = {}
    return np.array([number.setdefault(key, len(number)) for key in keys])


def _within(score_I: Floats, value_I: Floats, prompt_I: Ints) -> float | None:
    of_prompt = [np.flatnonzero(prompt_I == p) for p in range(int(prompt_I.max()) + 1)]
    own = [i for i in of_prompt if len(i) >= _LEAST_OF_PROMPT and np.ptp(value_I[i]) > 0]
    if not own:
        return None
    return float(np.average([spearman(score_I[i], value_I[i]) for i in own], weights=[len(i) for i in own]))


def _bootstrap(
    measure: Callable[[Floats, Floats], float], score_I: Floats, value_I: Floats, group_I: Ints, n: int, seed: int = 0
) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(group_I == g) for g in range(int(group_I.max()) + 1)]
    if len(members) == 1:  # all draws are the same, and the interval would have no width
        return -1.0 if measure is spearman else 0.0, 1.0
    drawn = (np.concatenate([members[g] for g in rng.integers(len(members), size=len(members))]) for _ in range(n))
    low, high = np.quantile([measure(score_I[d], value_I[d]) for d in drawn], [0.025, 0.975])
    return float(low), float(high)

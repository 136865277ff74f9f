"""Agreement of annotators. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from typing import NamedTuple


class Agreement(NamedTuple):
    """Agreement on pairs with a verdict other than a skip.

    `raw` is the share of pairs of verdicts on the same item that are equal, `alpha` Krippendorff's for nominal data; None where no
    item has two verdicts, and of alpha where all verdicts are one. `by_annotator` are numbers of verdicts.
    """

    n_labelled: int
    n_labelled_twice: int
    raw: float | None
    alpha: float | None
    by_annotator: dict[str, int]


def agreement(verdicts: Iterable[Mapping[str, str]]) -> Agreement:
    """Agreement of verdicts: one mapping an item, from annotator to verdict."""
    items = [each for each in verdicts if each]
    units = [list(each.values()) for each in items if len(each) > 1]
    pairs = [a == b for unit in units for a, b in combinations(unit, 2)]
    return Agreement(
        len(items),
        len(units),
        sum(pairs) / len(pairs) if pairs else None,
        krippendorff_alpha(units),
        dict(Counter(name for each in items for name in each)),
    )


def krippendorff_alpha(units: Sequence[Sequence[str]]) -> float | None:
    """Krippendorff's alpha for nominal data: 1 - (n - 1) sum_{c != k} o_ck / sum_{c != k} n_c n_k, with coincidences o_ck.

    `units`: the values of each item, of which those with one value do not count. None: undefined, as all values are equal or no
    item has two. Source: K. Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), section D.
    """
    coincidences: Counter[tuple[str, str]] = Counter()
    for values in units:
        if len(values) < 2:
            continue
        counts = Counter(values)
        for c, n_c in counts.items():
            for k, n_k in counts.items():
                coincidences[c, k] += n_c * (n_k - (c == k)) / (len(values) - 1)  # type: ignore[assignment]
    totals: Counter[str] = Counter()
    for (c, _), weight in coincidences.items():
        totals[c] += weight
    n = sum(totals.values())
    expected = n * n - sum(each * each for each in totals.values())
    if expected <= 0.0:
        return None
    observed = sum(weight for (c, k), weight in coincidences.items() if c != k)
    return 1.0 - (n - 1.0) * observed / expected

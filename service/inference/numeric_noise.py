"""How much a row's raw score depends on the other rows of its batch, measured once at load.

In exact arithmetic it would not. In floats the order of a sum depends on the shape of the batch, and a
difference between two scores that is no larger than this says nothing. Knows the scorer's interface only.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from rewardserve.model.scorer import HeadScores, Scorer, ScorerError, TokenBatch

_MAX_TOKENS = 4096  # a few seconds at start on a CPU, not a benchmark
_GROUPINGS = 2
_PASSES = 2 + _GROUPINGS  # each row goes through the network so many times

TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class NumericNoise:
    """|score alone - score in a batch| over `n_rows` rows, each in several batches: the largest, and the 99th percentile."""

    max: float
    p99: float
    n_rows: int


def numeric_noise(scorer: Scorer, raw: Callable[[HeadScores], float], rows: Sequence[TokenIds]) -> NumericNoise | None:
    """The noise over these rows, or over the shorter ones where all are too much work; None: it was not to be had."""
    chosen = _rows_within_budget(rows)
    if len(chosen) < 2:
        return None
    try:
        alone = {row: raw(scorer.score(TokenBatch((row,))).rows[0]) for row in chosen}
        beside = [
            abs(raw(heads) - alone[row])
            for group in _groups(chosen)
            for row, heads in zip(group, scorer.score(TokenBatch(group)).rows, strict=True)
        ]
    except ScorerError:
        return None
    if not all(map(math.isfinite, beside)):
        return None
    beside.sort()
    return NumericNoise(beside[-1], beside[math.ceil(0.99 * len(beside)) - 1], len(chosen))


def synthetic_rows(max_tokens: int) -> list[TokenIds]:
    """For a contract without probes: sixteen rows of 20 to 90 small ids, which every vocabulary has. Two begin alike."""
    lot = random.Random(17)
    beginnings = [tuple(lot.choices(range(1, 16), k=16 + 4 * i)) for i in range(8)]
    rows = [(*beginnings[i // 2], *lot.choices(range(1, 16), k=4 + 3 * i)) for i in range(16)]
    return [row[:max_tokens] for row in rows]


def _rows_within_budget(rows: Sequence[TokenIds]) -> list[TokenIds]:
    """As many distinct ones as there is time for, the shortest first."""
    by_length = sorted({row for row in rows if row}, key=lambda row: (len(row), row))
    totals = accumulate(map(len, by_length))
    return [row for row, total in zip(by_length, totals, strict=True) if total * _PASSES <= _MAX_TOKENS]


def _groups(rows: Sequence[TokenIds]) -> Iterator[tuple[TokenIds, ...]]:
    """All together, then small random groups, the same ones at every start."""
    yield tuple(rows)
    lot = random.Random(17)
    for _ in range(_GROUPINGS):
        left = lot.sample(rows, len(rows))
        while left:
            n = lot.randint(2, 5)
            yield tuple(left[:n])
            left = left[n:]

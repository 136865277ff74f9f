"""Measure at load how much a row's raw score depends on the other rows of its batch.

In exact arithmetic it would not. In floats the order of a sum depends on the shape of the batch, so a
difference between two scores that is no larger than this noise means nothing. Knows the scorer's interface only.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from rewardserve.model.backends import Identity
from rewardserve.model.scorer import Scorer, ScorerError, TokenBatch

_MAX_TOKENS = 4096  # a few seconds at start on a CPU, not a benchmark
_GROUPINGS = 2
_PASSES = 2 + _GROUPINGS  # forwards of each row

TokenIds = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class NumericNoise:
    """|score alone - score in a batch| over `n_rows` rows, each in several batches: the largest, and the 99th percentile."""

    max: float
    p99: float
    n_rows: int


def numeric_noise(scorer: Scorer, identity: Identity, rows: Sequence[TokenIds]) -> NumericNoise | None:
    """Measure the noise over these rows, or over the shorter ones where all are too much work; None where it cannot be measured."""
    chosen = _rows_within_budget(rows)
    if len(chosen) < 2:
        return None
    try:
        alone = {row: identity.raw(scorer.score(TokenBatch((row,))).rows[0]) for row in chosen}
        differences = [
            abs(identity.raw(heads) - alone[row])
            for group in _groups(chosen)
            for row, heads in zip(group, scorer.score(TokenBatch(group)).rows, strict=True)
        ]
    except ScorerError:
        return None
    if not all(map(math.isfinite, differences)):
        return None
    differences.sort()
    return NumericNoise(differences[-1], differences[math.ceil(0.99 * len(differences)) - 1], len(chosen))


def synthetic_rows(max_tokens: int) -> list[TokenIds]:
    """Rows for a contract without probes: sixteen of 20 to 90 small ids, which every vocabulary has. Two share a prefix."""
    rng = random.Random(17)
    prefixes = [tuple(rng.choices(range(1, 16), k=16 + 4 * i)) for i in range(8)]
    rows = [(*prefixes[i // 2], *rng.choices(range(1, 16), k=4 + 3 * i)) for i in range(16)]
    return [row[:max_tokens] for row in rows]


def _rows_within_budget(rows: Sequence[TokenIds]) -> list[TokenIds]:
    """As many distinct rows as the token limit allows, the shortest first."""
    by_length = sorted({row for row in rows if row}, key=lambda row: (len(row), row))
    totals = accumulate(map(len, by_length))
    return [row for row, total in zip(by_length, totals, strict=True) if total * _PASSES <= _MAX_TOKENS]


def _groups(rows: Sequence[TokenIds]) -> Iterator[tuple[TokenIds, ...]]:
    """One batch of all rows, then small random ones, the same at every start."""
    yield tuple(rows)
    rng = random.Random(17)
    for _ in range(_GROUPINGS):
        remaining = rng.sample(rows, len(rows))
        while remaining:
            n = rng.randint(2, 5)
            yield tuple(remaining[:n])
            remaining = remaining[n:]

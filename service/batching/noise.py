"""How much a row's raw score depends on who rides beside it, measured once before anybody is served.

In exact arithmetic it would not. In floats the order of a sum depends on the shape of the batch, and a
difference between two scores that is no larger than this says nothing. Knows the scorer's door only.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from model.scorer import HeadScores, Scorer, ScorerError, TokenBatch

MOST_ROWS = 4  # a few short forwards at start, not a benchmark


def numeric_noise(scorer: Scorer, raw: Callable[[HeadScores], float], rows: Sequence[tuple[int, ...]]) -> float | None:
    """The largest |alone - together| of raw scores over the shortest rows; None when nothing could be measured."""
    shortest = sorted({row for row in rows if row}, key=lambda row: (len(row), row))[:MOST_ROWS]
    if len(shortest) < 2:
        return None
    try:
        together = scorer.score(TokenBatch(tuple(shortest))).rows
        alone = [scorer.score(TokenBatch((row,))).rows[0] for row in shortest]
    except ScorerError:
        return None
    return max(abs(raw(a) - raw(b)) for a, b in zip(alone, together, strict=True))

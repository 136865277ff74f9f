"""Outcomes of rows and forwards, and which errors belong to a row, to a batch or to the backend.

Pure functions and records. Knows nothing of queues, threads or the time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from rewardserve.model.scorer import HeadScores, OutOfMemory, ScorerError
from rewardserve.service.errors import OutOfMemoryForRow, RowFailed, ScoreNotFinite, ScorerBug, ScorerFailed

BatchOutcome = Literal["ok", "out_of_memory", "failed", "bug"]


class RowScored(NamedTuple):
    """The raw heads of one row, and its cost. A named tuple, because there is one for every row of every request.

    `n_computed` is its share of the tokens computed. `cached`: the scores come from the cache.
    """

    heads: HeadScores
    queue_s: float
    forward_s: float
    n_computed: float
    cached: bool = False


RowOutcome = RowScored | RowFailed


@dataclass(frozen=True, slots=True)
class BatchResult:
    """One forward, as the metrics and the log see it.

    `n_rows` and `n_row_tokens` count the rows that the scorer got. Equal rows of several samples are one row there:
    `n_tokens` counts all of them, `queue_s` has an entry for each. `budget` is the budget after this forward.
    """

    outcome: BatchOutcome
    n_rows: int
    n_row_tokens: int
    n_tokens: int
    n_computed: int
    n_padding: int
    forward_s: float
    queue_s: tuple[float, ...]
    budget: int
    error: BaseException | None = None


def score_count_error(n_scores: int, n_rows: int) -> ScorerBug:
    """The error of all rows where the backend returned too few or too many scores: none can be assigned."""
    return ScorerBug(
        f"scorer returned {n_scores} scores for {n_rows} rows. This is a bug in the backend.",
        n_scores=n_scores, n_rows=n_rows,
    )  # fmt: skip


def score_error(heads: HeadScores) -> RowFailed | None:
    """The error of scores that are not all finite numbers, or None."""
    try:
        if all(map(math.isfinite, heads.values())):
            return None
    except (AttributeError, TypeError):
        return ScorerBug(f"scorer returned {type(heads).__name__} for a row. This is a bug in the backend.")
    return ScoreNotFinite("the model's score for this sample is NaN or infinite")


def batch_outcome(error: BaseException) -> BatchOutcome:
    """The metrics label for a forward that raised."""
    if isinstance(error, OutOfMemory):
        return "out_of_memory"
    return "failed" if isinstance(error, ScorerError) else "bug"


def row_error(error: BaseException, lengths: Sequence[int]) -> RowFailed:
    """The error of every row of a forward that raised."""
    if isinstance(error, RowFailed):
        return error
    n_tokens = max(lengths)
    if isinstance(error, OutOfMemory):
        return OutOfMemoryForRow(
            f"this sample of {n_tokens} tokens does not fit on the device even alone; lower REWARD_MAX_INPUT_TOKENS",
            n_tokens=n_tokens,
        )
    # The backend's message goes to the log, not to the client: it may quote anything.
    return ScorerFailed(f"the backend raised {type(error).__name__} for this sample")

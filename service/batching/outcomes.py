"""What becomes of a row and of a forward, and which of what the scorer says is an error of whom.

Pure functions and records. Knows nothing of queues, threads or the time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from model.scorer import HeadScores, OutOfMemory, ScorerError
from service.errors import OutOfMemoryForRow, RowFailed, ScoreNotFinite, ScorerBug, ScorerFailed

BatchOutcome = Literal["ok", "out_of_memory", "failed", "bug"]


@dataclass(frozen=True, slots=True)
class RowScored:
    """The raw heads of one row, and what it took. `n_computed` is its share of the tokens computed."""

    heads: HeadScores
    queue_s: float
    forward_s: float
    n_computed: float


RowOutcome = RowScored | RowFailed


@dataclass(frozen=True, slots=True)
class BatchDone:
    """One forward, as the metrics and the log see it. `queue_s` has one entry a row."""

    outcome: BatchOutcome
    n_rows: int
    n_tokens: int
    n_computed: int
    n_padding: int
    forward_s: float
    queue_s: tuple[float, ...]
    max_tokens: int
    error: BaseException | None = None


def wrong_number(n_scores: int, n_rows: int) -> ScorerBug:
    """The backend has lost count, so nothing is known of any row."""
    return ScorerBug(
        f"scorer returned {n_scores} scores for {n_rows} rows. This is a bug in the backend.",
        n_scores=n_scores, n_rows=n_rows,
    )  # fmt: skip


def checked(heads: HeadScores, queue_s: float, forward_s: float, n_computed: float) -> RowOutcome:
    """The row's heads with what they took, unless they are no finite numbers."""
    try:
        if not all(math.isfinite(value) for value in heads.values()):
            return ScoreNotFinite("the model's score for this sample is NaN or infinite")
    except (AttributeError, TypeError):
        return ScorerBug(f"scorer returned {type(heads).__name__} for a row. This is a bug in the backend.")
    return RowScored(heads, queue_s, forward_s, n_computed)


def outcome_of(error: BaseException) -> BatchOutcome:
    """The one word for a forward that raised."""
    if isinstance(error, OutOfMemory):
        return "out_of_memory"
    return "failed" if isinstance(error, ScorerError) else "bug"


def row_error(error: BaseException, lengths: Sequence[int]) -> RowFailed:
    """What every row of a forward that raised is told."""
    if isinstance(error, RowFailed):
        return error
    n_tokens = max(lengths)
    if isinstance(error, OutOfMemory):
        return OutOfMemoryForRow(
            f"this sample of {n_tokens} tokens does not fit on the device even alone; lower REWARD_MAX_INPUT_TOKENS",
            n_tokens=n_tokens,
        )
    # The backend's words go to the log, not to the caller: they may be about anything.
    return ScorerFailed(f"the backend raised {type(error).__name__} for this sample")

"""Compute the rewards of the rows of a request: a reward for each, or the error of that row alone.

Passes the columns to the pipeline that it reads. Knows nothing of batches, requests or HTTP.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import NamedTuple

from rewardserve.model.conversation import Sample
from rewardserve.model.encoding import Encoded
from rewardserve.model.reward import Pipeline, Reward, RewardBatch, repetition
from rewardserve.model.scorer import HeadScores
from rewardserve.service.errors import RowFailed, ScoreNotFinite, ScorerBug


class ScoredRow(NamedTuple):
    """A sample with the scores of its row. `id` is the name that its client gave it, `task` that of its task, "" without one."""

    sample: Sample
    encoded: Encoded
    heads: HeadScores
    id: str | None = None
    task: str = ""

    @property
    def prompt_ids(self) -> tuple[int, ...]:
        """The ids before the response; all ids where the response is not known, so that the sample is a group by itself."""
        ids, n_prompt = self.encoded.ids, self.encoded.n_prompt
        return ids[:n_prompt] if n_prompt else ids


def compute_rewards(rows: Sequence[ScoredRow], pipeline: Pipeline) -> list[Reward | RowFailed]:
    """Compute one entry per row, in order; none depends on another row."""
    try:
        rewards = pipeline(_batch(rows, pipeline))
    except (KeyError, ArithmeticError, ValueError) as error:
        if len(rows) > 1:  # find the row at fault
            return [each for row in rows for each in compute_rewards([row], pipeline)]
        return [_failure(error)]
    # Finite heads may overflow in the sum, and a finite sum in the division by a tiny std, which a soft cap would
    # then make finite again: so each of the three numbers is checked.
    if isfinite(sum([r.raw + (r.normalized or 0.0) + r.value for r in rewards])):
        return [*rewards]
    return [reward if _is_finite(reward) else _not_finite() for reward in rewards]


def _batch(rows: Sequence[ScoredRow], pipeline: Pipeline) -> RewardBatch:
    batch, reads = RewardBatch([row.heads for row in rows]), pipeline.reads
    if not reads:
        return batch
    if "lengths" in reads:
        batch.lengths = [len(row.encoded.response or ()) or None for row in rows]
    if "missing_end" in reads:
        batch.missing_end = [row.encoded.missing_end for row in rows]
    if "repetition" in reads:
        batch.repetition = [repetition(row.encoded.response or ()) for row in rows]
    if "references" in reads:
        batch.references = [row.sample.reference_rewards for row in rows]
    return batch


def _failure(error: Exception) -> RowFailed:
    if isinstance(error, KeyError):
        return ScorerBug(f"scorer left out the head {error}. This is a bug in the backend.")
    return _not_finite()


def _not_finite() -> RowFailed:
    return ScoreNotFinite("the reward made of this sample's score is NaN or infinite")


def _is_finite(reward: Reward) -> bool:
    return isfinite(reward.raw) and isfinite(reward.normalized or 0.0) and isfinite(reward.value)

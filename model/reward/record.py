"""The records that walk through the reward pipeline: a batch of columns goes in, one `Reward` a sample comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rewardserve.model.scorer import HeadScores

_CAPPED = frozenset({"capped_low", "capped_high", "softcapped_low", "softcapped_high"})


class Reward(NamedTuple):
    """One score on its way to the trainer, with everything that was done to it.

    `raw` is what the value heads said, as one number; `normalized` is that after calibration and combination, or None
    where nothing was normalised; `value` is what the trainer gets. `changes` has an entry for every name in
    `Pipeline.stage_names`: what each added, so that their sum is `value`. `spread` is the standard deviation of the
    members' calibrated scores, None for one member. `notes` says what a stage did that is worth telling. A named
    tuple: there is one for every sample.
    """

    raw: float
    value: float
    normalized: float | None = None
    notes: tuple[str, ...] = ()
    changes: tuple[float, ...] = ()
    spread: float | None = None

    @property
    def is_capped(self) -> bool:
        """Whether a cap, hard or soft, took something off."""
        return any(note in _CAPPED for note in self.notes)


@dataclass(slots=True)
class RewardBatch:
    """What the pipeline may read of some samples, a column each; a column that no stage reads may be empty.

    `lengths` counts the tokens of the response, its ending included; None: not known. `repetition` is the share of
    the response's token trigrams that came before in it. `references` are raw scores of reference responses to the
    same prompt, as far as the caller gave any.
    """

    heads: Sequence[HeadScores]
    lengths: Sequence[int | None] = ()
    missing_end: Sequence[bool] = ()
    repetition: Sequence[float] = ()
    references: Sequence[tuple[float, ...]] = ()


def repetition(ids: Sequence[int]) -> float:
    """1 - (different trigrams) / (trigrams) of a response, in [0, 1); 0 where it has none."""
    n = len(ids) - 2
    return 1.0 - len(set(zip(ids, ids[1:], ids[2:], strict=False))) / n if n > 0 else 0.0

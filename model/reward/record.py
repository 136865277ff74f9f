"""Records of the reward pipeline: `RewardBatch`, its input columns, and `Reward`, its output for a sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rewardserve.model.scorer import HeadScores

_CAPPED = frozenset({"capped_low", "capped_high", "softcapped_low", "softcapped_high"})


class Reward(NamedTuple):
    """Reward of a sample, with the change of every stage.

    `raw` is the combined score of the value heads; `normalized` is the score after calibration and combination, or None
    where nothing was normalised; `value` is the reward for the trainer. `changes` has an entry for every name in
    `Pipeline.stage_names`; their sum, with `lookahead`, is `value`. `lookahead` is the change by continuations, None where
    the sample has none. `spread` is the standard deviation of the
    members' calibrated scores, None for one member. `notes`: events of the stages, such as `capped_high`. A named
    tuple for speed: there is one for every sample.
    """

    raw: float
    value: float
    normalized: float | None = None
    notes: tuple[str, ...] = ()
    changes: tuple[float, ...] = ()
    spread: float | None = None
    lookahead: float | None = None

    @property
    def score(self) -> float:
        """The combined score of the members before every other stage, with the change by continuations: for trip wires."""
        return self.changes[0] + (self.lookahead or 0.0)

    @property
    def is_capped(self) -> bool:
        """Whether a cap, hard or soft, has changed the value."""
        return any(note in _CAPPED for note in self.notes)


@dataclass(slots=True)
class RewardBatch:
    """Input columns of the pipeline, with one entry a sample; a column that no stage reads may be empty.

    `lengths` counts the tokens of the response, its ending included; None: not known. `repetition` is the share of
    the response's token trigrams that are repeated. `references` are raw scores of reference responses to the
    same prompt, empty where the client has sent none.
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

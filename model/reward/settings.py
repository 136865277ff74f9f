"""Settings of the reward pipeline. `pipeline` checks whether a checkpoint's calibration supports them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from rewardserve.model.reward.members import CombineMethod

Shape = Literal["none", "cap", "softcap", "par", "lsc"]


@dataclass(frozen=True, slots=True)
class CombineSettings:
    """Combination of several members. `method` None: the weighted sum of a model's heads; of several models, or members of
    one, the softmin of normalised scores, or the mean of others.

    `weights` by name of a model, or of a head of one model; others keep the weight of the checkpoint, or 1. The method
    `sum` takes none: its heads have those of the checkpoint.
    """

    method: CombineMethod | None = None
    beta: float = 0.5
    weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PenaltySettings:
    """Penalties, in units of the value. 0: none.

    `overlong` begins at `overlong_start` tokens of the response and is full at `overlong_end`. `repetition` begins above a
    share `repetition_above` of repeated trigrams and is full at 1; None: above the share of the calibration.
    """

    missing_end: float = 0.0
    overlong: float = 0.0
    overlong_start: int | None = None
    overlong_end: int | None = None
    repetition: float = 0.0
    repetition_above: float | None = None


@dataclass(frozen=True, slots=True)
class RewardSettings:
    """Settings of the pipeline. None: the default that the calibration supports.

    Caps are in units of the value before the stage: normalised where normalisation is on, else raw. `length_debias` is
    gamma, the share of the expected effect of length that is subtracted. `slope` is the k of `par` and `lsc`.
    """

    normalize: bool | None = None
    combine: CombineSettings = CombineSettings()
    length_debias: float = 0.0
    penalties: PenaltySettings = PenaltySettings()
    shape: Shape | None = None
    cap_low: float | None = None
    cap_high: float | None = None
    slope: float = 1.0

"""What the operator may ask of the reward pipeline. Whether a checkpoint can give it is decided by `pipeline`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from rewardserve.model.reward.members import CombineMethod

Shape = Literal["none", "cap", "softcap", "par", "lsc"]


@dataclass(frozen=True, slots=True)
class CombineSettings:
    """How several members become one. None: the weighted sum of a model's heads, or the mean of several models.

    `weights` by member name; who is not in it has the weight that the checkpoint gives it, or 1.
    """

    method: CombineMethod | None = None
    beta: float = 0.5
    weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PenaltySettings:
    """What is taken off, in units of the value. 0: nothing is.

    `overlong` is reached at `overlong_end` tokens of response and begins at `overlong_start`. `repetition` is that of a
    response of nothing but repeated trigrams, and begins above `repetition_above`; None: above what is usual in the
    calibration.
    """

    missing_end: float = 0.0
    overlong: float = 0.0
    overlong_start: int | None = None
    overlong_end: int | None = None
    repetition: float = 0.0
    repetition_above: float | None = None


@dataclass(frozen=True, slots=True)
class RewardSettings:
    """What the operator asked for. None: the default that the calibration supports.

    Caps are in units of the value that the stage sees: normalised where normalisation is on, else raw. `length_debias` is
    gamma, the share of what length alone is worth that is taken out. `slope` is the k of `par` and `lsc`.
    """

    normalize: bool | None = None
    combine: CombineSettings = CombineSettings()
    length_debias: float = 0.0
    penalties: PenaltySettings = PenaltySettings()
    shape: Shape | None = None
    cap_low: float | None = None
    cap_high: float | None = None
    slope: float = 1.0

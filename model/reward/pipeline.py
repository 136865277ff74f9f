"""Which stages a reward passes, in which order, built once at start and then a pure function.

Fixed order: normalise, then shape (none, cap or softcap). Anything asked for that the calibration
cannot support is an error at start, never a silent no-op.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal

from model.calibration import Calibration
from model.reward.record import Reward
from model.reward.stages import Cap, Normalize, SoftCap, Stage

Shape = Literal["none", "cap", "softcap"]
SHAPES: tuple[str, ...] = ("none", "cap", "softcap")
SOFT_WIDTH = 0.125
"""Share of the distance between the caps over which a soft cap bends, on each side."""


class PipelineError(Exception):
    """The settings ask for something that this calibration cannot give."""


@dataclass(frozen=True, slots=True)
class RewardSettings:
    """What the operator asked for. None: the default that the calibration supports.

    Caps are in units of the value that the stage sees: normalised where normalisation is on, else raw.
    """

    normalize: bool | None = None
    shape: Shape | None = None
    cap_low: float | None = None
    cap_high: float | None = None


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The stages in order. Calling it on a raw score gives the finished `Reward`."""

    stages: tuple[Stage, ...]
    normalizes: bool
    shape: Shape
    cap_low: float | None
    cap_high: float | None
    digest: str

    def __call__(self, raw: float) -> Reward:
        """Send one finite raw score through every stage."""
        reward = Reward(raw, raw)
        for stage in self.stages:
            reward = stage(reward)
        return reward


def build_pipeline(calibration: Calibration | None, settings: RewardSettings) -> Pipeline:
    """The pipeline for these settings, or `PipelineError` naming the setting and the remedy."""
    normalize = settings.normalize if settings.normalize is not None else calibration is not None
    if normalize and calibration is None:
        raise PipelineError(
            "REWARD_NORMALIZE=on, but this checkpoint has no fitted statistics (calibration.json, or mean and std in "
            "config.json). Fit them with `reward-train calibrate`, or set REWARD_NORMALIZE=off."
        )
    stages: list[Stage] = []
    if normalize and calibration is not None:
        stages.append(Normalize(calibration.mean, calibration.std))
    low, high = _caps(calibration, settings, normalize)
    shape: Shape = settings.shape if settings.shape is not None else _default_shape(low, high)
    if shape == "none":
        low = high = None
    elif low is None and high is None:
        raise PipelineError(
            f"REWARD_SHAPE={shape} needs a cap: set REWARD_CAP_LOW or REWARD_CAP_HIGH, or use a checkpoint whose "
            "calibration.json has caps."
        )
    elif shape == "cap":
        stages.append(Cap(low, high))
    else:
        stages.append(SoftCap(low, high, _soft_width(low, high)))
    described = [{"stage": type(s).__name__, **asdict(s)} for s in stages]  # type: ignore[call-overload]
    digest = "sha256:" + hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()
    return Pipeline(tuple(stages), normalize, shape, low, high, digest)


def _default_shape(low: float | None, high: float | None) -> Shape:
    return "none" if low is None and high is None else "softcap"


def _caps(
    calibration: Calibration | None, settings: RewardSettings, normalize: bool
) -> tuple[float | None, float | None]:
    low, high = settings.cap_low, settings.cap_high
    if low is None and high is None and calibration is not None:
        low, high = calibration.cap_low, calibration.cap_high
        if not normalize:
            low = None if low is None else calibration.mean + calibration.std * low
            high = None if high is None else calibration.mean + calibration.std * high
    if low is not None and high is not None and low >= high:
        raise PipelineError(f"REWARD_CAP_LOW={low} is not below REWARD_CAP_HIGH={high}")
    return low, high


def _soft_width(low: float | None, high: float | None) -> float:
    if low is not None and high is not None:
        return (high - low) * SOFT_WIDTH
    # One open side leaves no distance to take a share of: one unit (a standard deviation when normalised).
    return 1.0

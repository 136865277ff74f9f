"""Build the stages of the reward pipeline once at start; the pipeline is then a pure function.

Fixed order: calibrate, combine, debias, penalties, shape. A setting that the calibration cannot support is an
error at start, never a silent no-op.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from math import inf
from typing import Any

from rewardserve.model.calibration import Calibration
from rewardserve.model.reward.members import Combination, CombineMethod, Scale, ScaledMember
from rewardserve.model.reward.record import Reward, RewardBatch
from rewardserve.model.reward.settings import PenaltySettings, RewardSettings, Shape
from rewardserve.model.reward.stages import (
    Cap,
    Debias,
    LogSigmoid,
    MissingEnd,
    Overlong,
    Par,
    Repetition,
    SoftCap,
    Stage,
    Values,
)
from rewardserve.model.scorer import HeadScores

SOFT_WIDTH = 0.125
"""Share of the distance between the caps over which a soft cap bends, on each side."""

_LSC_QUANTILE = 0.85
"""Quantile of the frozen reference rewards that a log-sigmoid compares with where the client sends no reference."""

_AGAIN = "Fit it with `rewardserve calibrate`"


class PipelineError(Exception):
    """The calibration does not support the settings; the message has the setting and the remedy."""


@dataclass(frozen=True, slots=True)
class EnsembleMember:
    """A loaded model as the pipeline sees it: its heads with their weights, and its frozen statistics."""

    name: str
    heads: tuple[tuple[str, float], ...]
    calibration: Calibration | None


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The stages in order. A call with a batch returns a finished `Reward` for every sample.

    `reads` names the required columns of a batch. A sample's reward depends on its entries alone.
    """

    combination: Combination
    stages: tuple[Stage, ...]
    normalizes: bool
    shape: Shape
    cap_low: float | None
    cap_high: float | None
    reads: frozenset[str]
    digest: str

    def __call__(self, batch: RewardBatch) -> list[Reward]:
        """Run every sample through every stage. Raise `KeyError` where a head is missing.

        Numbers may not be finite, before or after a stage: the caller checks the three numbers of a reward.
        """
        combined = self.combination(batch.heads)
        values = combined.value
        columns, notes = [values], dict[int, tuple[str, ...]]()
        for stage in self.stages:
            values, stage_notes = stage(values, batch)
            columns.append(values)
            for i, note in stage_notes.items():
                notes[i] = (*notes.get(i, ()), note)
        return _rewards(combined.raw, columns, combined.value if self.normalizes else None, combined.spread, notes)

    def one(self, heads: HeadScores, **columns: Any) -> Reward:
        """The reward of a single sample; `columns` are its entries."""
        (reward,) = self(RewardBatch([heads], **{name: [entry] for name, entry in columns.items()}))
        return reward

    @property
    def stage_names(self) -> tuple[str, ...]:
        """Names of the entries of a reward's `changes`."""
        return ("combined", *(stage.name for stage in self.stages))

    @property
    def itemises(self) -> bool:
        """Whether a reward is more than its normalised score in a shape."""
        return len(self.combination.members) > 1 or any(stage.name != "shape" for stage in self.stages)


def _rewards(
    raw: Values,
    columns: list[Values],
    normalized: Values | None,
    spread: Values | None,
    notes: dict[int, tuple[str, ...]],
) -> list[Reward]:
    changes = [columns[0], *(_change(before, after) for before, after in pairwise(columns))]
    nothing = [None] * len(raw)
    rows = zip(raw, columns[-1], normalized or nothing, zip(*changes, strict=True), spread or nothing, strict=True)
    if not notes:
        return [Reward(r, value, z, (), change, apart) for r, value, z, change, apart in rows]
    return [Reward(r, value, z, notes.get(i, ()), change, apart) for i, (r, value, z, change, apart) in enumerate(rows)]


def _change(before: Values, after: Values) -> Values:
    return [0.0] * len(before) if after is before else [b - a for a, b in zip(before, after, strict=True)]


# -- building -------------------------------------------------------------------------------------------------------


def check_settings(settings: RewardSettings, members: Sequence[str] = ()) -> None:
    """Raise `PipelineError` for settings that no model satisfies. `members`: the names of an ensemble, if there is one."""
    combine, penalties = settings.combine, settings.penalties
    if not combine.beta >= 0.0:
        raise PipelineError(f"combine.beta={combine.beta} is below zero")
    if wrong := [f"{name}={weight}" for name, weight in combine.weights.items() if not 0.0 <= weight < inf]:
        raise PipelineError(f"combine.weights: {_named(wrong)}: a weight is zero or a positive number")
    if members:
        if combine.method == "sum":
            raise PipelineError("combine.method=sum is for the heads of one model. Use mean, min, softmin or and.")
        _check_weights(combine.weights, dict.fromkeys(members, 1.0), "models")
    for name in ("missing_end", "overlong", "repetition"):
        if not getattr(penalties, name) >= 0.0:
            raise PipelineError(f"penalties.{name}={getattr(penalties, name)}: a penalty must not be below zero")
    if penalties.overlong:
        _check_overlong(penalties)


def _check_overlong(asked: PenaltySettings) -> None:
    needed = {"penalties.overlong_start": asked.overlong_start, "penalties.overlong_end": asked.overlong_end}
    if missing := [name for name, value in needed.items() if value is None]:
        raise PipelineError(
            f"penalties.overlong={asked.overlong:g} needs the lengths in tokens from which the penalty grows and at which it is "
            f"reached: set {' and '.join(missing)}."
        )
    start, end = needed.values()
    if start is not None and end is not None and not 0 <= start < end:
        raise PipelineError(
            f"penalties.overlong_start={start} must be at least 0 and below penalties.overlong_end={end}."
        )


def _check_weights(asked: Mapping[str, float], default: Mapping[str, float], kind: str) -> None:
    """Raise `PipelineError` unless the weights name members, whose weights are `default`, and leave one above zero."""
    if unknown := sorted(set(asked) - set(default)):
        raise PipelineError(f"combine.weights names {_named(unknown)}; the {kind} are {_named(list(default))}")
    weights = list({**default, **asked}.values())
    if not sum(weights) > 0.0:
        raise PipelineError(f"combine.weights: one weight must be above zero, they are {weights}")


def build_pipeline(ensemble_members: Sequence[EnsembleMember], settings: RewardSettings) -> Pipeline:
    """The pipeline for these settings, or `PipelineError` naming the setting and the remedy."""
    check_settings(settings, [o.name for o in ensemble_members] if len(ensemble_members) > 1 else [])
    normalizes = settings.normalize if settings.normalize is not None else all(o.calibration for o in ensemble_members)
    if normalizes and (without := [o.name for o in ensemble_members if o.calibration is None]):
        raise PipelineError(
            f"normalize=on, but {_named(without)} has no fitted statistics (calibration.json, or mean and std in "
            "config.json). Fit them with `rewardserve calibrate`, or set normalize=off."
        )
    combination = _combination(ensemble_members, settings, normalizes)
    # The statistics of a model's summed score do not apply to another combination of its heads.
    calibration = ensemble_members[0].calibration if combination.method == "sum" else None
    low, high = _caps(calibration, settings, normalizes)
    shape: Shape = settings.shape if settings.shape is not None else _default_shape(low, high)
    stages: list[Stage] = [*_debias(calibration, settings), *_penalties(calibration, settings.penalties)]
    if shape == "none":
        low = high = None
    elif shape in ("cap", "softcap"):
        stages.append(_capping(shape, low, high))
    else:
        low = high = None
        stages.append(_against_references(shape, calibration, combination, settings))
    return Pipeline(
        combination=combination,
        stages=tuple(stages),
        normalizes=normalizes,
        shape=shape,
        cap_low=low,
        cap_high=high,
        reads=frozenset(column for stage in stages for column in stage.reads),
        digest=_digest(combination, stages),
    )


def _digest(combination: Combination, stages: Sequence[Stage]) -> str:
    """The digest of all that decides a reward. The names of members do not: one is a path, which differs between replicas."""
    combined = asdict(combination)
    for member in combined["members"]:
        del member["name"]
    described = [combined, *({"stage": type(s).__name__, **asdict(s)} for s in stages)]  # type: ignore[call-overload]
    return "sha256:" + hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


# -- members --------------------------------------------------------------------------------------------------------


def _combination(ensemble_members: Sequence[EnsembleMember], settings: RewardSettings, normalizes: bool) -> Combination:
    asked = settings.combine
    how = asked.method or _default_method(len(ensemble_members), normalizes)
    if how == "sum" and asked.weights:
        raise PipelineError(
            "combine.weights has no effect with combine.method=sum, the default for one model: its heads keep the weights of the "
            f"checkpoint ({_named([name for name, _ in ensemble_members[0].heads])}). Set combine.method=mean, min, softmin or "
            "and, which weigh heads."
        )
    if len(ensemble_members) > 1 or how == "sum":
        members = [_whole(ensemble_member, normalizes) for ensemble_member in ensemble_members]
    else:
        members = [*_heads_of(ensemble_members[0], normalizes)]
    kind = "models" if len(ensemble_members) > 1 else "heads"
    return Combination(_weighted(members, settings, kind), how, asked.beta if how == "softmin" else 0.0)


def _default_method(n_models: int, normalizes: bool) -> CombineMethod:
    if n_models == 1:
        return "sum"
    return "softmin" if normalizes else "mean"  # a softmin needs one scale


def _whole(ensemble_member: EnsembleMember, normalizes: bool) -> ScaledMember:
    c = ensemble_member.calibration
    if c is None:
        return ScaledMember(ensemble_member.name, ensemble_member.heads)
    return ScaledMember(ensemble_member.name, ensemble_member.heads, _scale(c.mean, c.std, c.temperature, normalizes))


def _heads_of(ensemble_member: EnsembleMember, normalizes: bool) -> Iterator[ScaledMember]:
    """Yield each head as a member, with its weight in the sum of normalised heads."""
    fitted = {head.name: head for head in ensemble_member.calibration.heads} if ensemble_member.calibration else {}
    for name, weight in ensemble_member.heads:
        head = fitted.get(name)
        if head is None and normalizes:
            raise PipelineError(
                f"combine.method needs statistics of each head, and {ensemble_member.name} has none of {name}. {_AGAIN}, "
                "or set combine.method=sum."
            )
        sign = -1.0 if weight < 0 else 1.0
        if head is None:
            yield ScaledMember(name, ((name, sign),), weight=abs(weight))
        else:
            scale = _scale(sign * head.mean, head.std, head.temperature, normalizes)
            yield ScaledMember(name, ((name, sign),), scale, abs(weight) * head.std)


def _scale(mean: float, std: float, temperature: float, normalizes: bool) -> Scale:
    return Scale(mean, std, temperature) if normalizes else Scale(0.0, 1.0, temperature)


def _weighted(members: Sequence[ScaledMember], settings: RewardSettings, kind: str) -> tuple[ScaledMember, ...]:
    """Apply the operator's weights, normalised to a sum of 1."""
    asked = settings.combine.weights
    _check_weights(asked, {member.name: member.weight for member in members}, kind)
    weights = [asked.get(member.name, member.weight) for member in members]
    return tuple(replace(m, weight=weight / sum(weights)) for m, weight in zip(members, weights, strict=True))


# -- debiasing and penalties ----------------------------------------------------------------------------------------


def _debias(calibration: Calibration | None, settings: RewardSettings) -> list[Stage]:
    gamma = settings.length_debias
    if not 0.0 <= gamma <= 1.0:
        raise PipelineError(f"length_debias={gamma} is not between 0 and 1")
    if not gamma:
        return []
    if calibration is None or not calibration.length_curve or calibration.log_length is None:
        raise PipelineError(f"length_debias={gamma} needs the length curve of one calibrated model. {_AGAIN}.")
    return [Debias(gamma, calibration.length_curve, calibration.log_length)]


def _penalties(calibration: Calibration | None, asked: PenaltySettings) -> list[Stage]:
    stages: list[Stage] = [MissingEnd(asked.missing_end)] if asked.missing_end else []
    if asked.overlong and asked.overlong_start is not None and asked.overlong_end is not None:
        stages.append(Overlong(asked.overlong, asked.overlong_start, asked.overlong_end))
    if asked.repetition:
        threshold = asked.repetition_above
        if threshold is None and calibration is not None:
            threshold = calibration.repetition_high
        if threshold is None or not 0.0 <= threshold < 1.0:
            raise PipelineError(
                f"penalties.repetition={asked.repetition} needs the calibration's usual share of repeated trigrams. "
                f"{_AGAIN}, or set penalties.repetition_above to a share below 1."
            )
        stages.append(Repetition(asked.repetition, threshold))
    return stages


# -- shapes ---------------------------------------------------------------------------------------------------------


def _default_shape(low: float | None, high: float | None) -> Shape:
    return "none" if low is None and high is None else "cap"


def _caps(
    calibration: Calibration | None, settings: RewardSettings, normalizes: bool
) -> tuple[float | None, float | None]:
    low, high = settings.cap_low, settings.cap_high
    if low is None and high is None and calibration is not None:
        low, high = calibration.cap_low, calibration.cap_high
        if not normalizes:
            low = None if low is None else calibration.mean + calibration.std * low
            high = None if high is None else calibration.mean + calibration.std * high
    if low is not None and high is not None and low >= high:
        raise PipelineError(f"cap_low={low} is not below cap_high={high}")
    return low, high


def _capping(shape: Shape, low: float | None, high: float | None) -> Stage:
    if low is None and high is None:
        raise PipelineError(
            f"shape={shape} needs a cap: set cap_low or cap_high, or use a checkpoint whose calibration.json has caps."
        )
    return Cap(low, high) if shape == "cap" else SoftCap(low, high, _soft_width(low, high))


def _soft_width(low: float | None, high: float | None) -> float:
    if low is not None and high is not None:
        return (high - low) * SOFT_WIDTH
    # With one cap there is no distance between caps: one unit (a standard deviation when normalised).
    return 1.0


def _against_references(
    shape: Shape, calibration: Calibration | None, combination: Combination, settings: RewardSettings
) -> Stage:
    if calibration is None or not calibration.quantiles:
        raise PipelineError(
            f"shape={shape} needs reference rewards for samples that bring none, and there is no calibration of "
            f"this reward with quantiles. {_AGAIN}."
        )
    if not settings.slope > 0.0:
        raise PipelineError(f"slope={settings.slope} is not above zero")
    scale = combination.members[0].scale
    slope = settings.slope * combination.logit_scale
    frozen = [((raw - scale.mean) / scale.std, p) for p, raw in calibration.quantiles]
    if shape == "par":
        # The ventiles weigh the same; the tails of the table are too thin to.
        even = tuple(z for z, p in frozen if 0.05 <= p <= 0.95)
        return Par(slope, even or tuple(z for z, _ in frozen), scale.mean, scale.std)
    reference = min(frozen, key=lambda each: abs(each[1] - _LSC_QUANTILE))[0]
    return LogSigmoid(slope, reference, scale.mean, scale.std)


def _named(names: Sequence[str]) -> str:
    return ", ".join(names)

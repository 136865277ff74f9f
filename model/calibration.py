"""Calibration: the frozen statistics that turn a raw score into a normalised one.

They are fitted once, on held-out data, by `rewardserve.training.evaluation.calibrate`, and are stored in the checkpoint as
`calibration.json`. Standard library only.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

from rewardserve.model.text.field_types import check_fields
from rewardserve.model.text.text_files import parse_json, write_text

FILE_NAME = "calibration.json"
REFERENCE_QUANTILES: tuple[float, ...] = (0.001, 0.005, 0.01, *(i / 20 for i in range(1, 20)), 0.99, 0.995, 0.999)


class CalibrationError(Exception):
    """The statistics are missing or invalid; the message has the field and the remedy."""


@dataclass(frozen=True, slots=True)
class HeadCalibration:
    """Statistics of one head's raw values on the same responses."""

    name: str
    mean: float
    std: float
    temperature: float = 1.0


@dataclass(frozen=True, slots=True)
class TraitCalibration:
    """Mean and standard deviation of one trait (`rewardserve.model.traits`), or of `distance`, over the same responses."""

    name: str
    mean: float
    std: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """Statistics of raw scores on held-out reference responses.

    `mean` and `std` are of the raw score. `temperature` divides score differences in the
    Bradley-Terry probability. `cap_low` and `cap_high` are in units of the normalised score.
    `length_slope` is the least-squares slope of the normalised score on log(tokens of the response), information
    only; `length_curve` has the normalised score that is expected at a log length, by locally weighted regression, and
    `log_length` is the median of those. `repetition_high` is the share of repeated token trigrams that 99 of 100
    responses do not exceed. `quantiles` maps a probability to the raw score below which that share lies. `heads` are the
    statistics of each head, where there are several. `traits` are the statistics of the responses' traits, counted with the
    phrases of `lexicon`, and of the distance of their hidden states (`scorer.DISTANCE`) from `hidden_reference`, the digest
    of that file; empty where there is none. `n` is the number of responses and `data_digest` identifies them.
    """

    mean: float
    std: float
    temperature: float = 1.0
    cap_low: float | None = None
    cap_high: float | None = None
    length_slope: float | None = None
    length_curve: tuple[tuple[float, float], ...] = ()
    log_length: float | None = None
    repetition_high: float | None = None
    heads: tuple[HeadCalibration, ...] = ()
    traits: tuple[TraitCalibration, ...] = ()
    lexicon: str = ""
    hidden_reference: str = ""
    quantiles: tuple[tuple[float, float], ...] = ()
    n: int = 0
    data_digest: str = ""
    source: str = "fitted"

    def __post_init__(self) -> None:
        """Raise `CalibrationError` with the invalid field."""
        for of, scale in (("", self), *((f"{head.name}.", head) for head in self.heads)):
            for name in ("mean", "std", "temperature"):
                if not math.isfinite(getattr(scale, name)):
                    raise CalibrationError(f"calibration: {of}{name} is {getattr(scale, name)}, it must be finite")
            for name in ("std", "temperature"):
                if getattr(scale, name) <= 0:
                    raise CalibrationError(f"calibration: {of}{name} is {getattr(scale, name)}, it must be above zero")
        for name, value in asdict(self).items():
            if not all(map(math.isfinite, _numbers(value))):
                raise CalibrationError(f"calibration: {name} has a number that is not finite")
        if any(a >= b for (a, _), (b, _) in pairwise(self.length_curve)):
            raise CalibrationError("calibration: the knots of length_curve do not rise")
        if self.cap_low is not None and self.cap_high is not None and self.cap_low >= self.cap_high:
            raise CalibrationError(
                f"calibration: its lower cap {self.cap_low} is not below its upper cap {self.cap_high}"
            )

    @property
    def digest(self) -> str:
        """`sha256:...` of the content; the same statistics have the same digest."""
        # Calibrations without a hidden reference keep the digest that they had before the field was added.
        known = {name: value for name, value in asdict(self).items() if name != "hidden_reference" or value}
        text = json.dumps(known, sort_keys=True, separators=(",", ":"))
        return "sha256:" + hashlib.sha256(text.encode()).hexdigest()

    def shifted(self, by: float, by_head: Mapping[str, float]) -> Calibration:
        """The statistics for raw scores that are higher by a constant, and head values that are higher by `by_head`."""
        return replace(
            self,
            mean=self.mean + by,
            quantiles=tuple((share, score + by) for share, score in self.quantiles),
            heads=tuple(replace(head, mean=head.mean + by_head.get(head.name, 0.0)) for head in self.heads),
        )

    def save(self, folder: Path) -> None:
        """Write `calibration.json` into a checkpoint folder."""
        write_text(folder / FILE_NAME, json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Calibration | None:
        """Read `calibration.json`, or None where there is none. Raise `CalibrationError` if it is unreadable."""
        path = folder / FILE_NAME
        if not path.is_file():
            return None
        try:
            raw: dict[str, Any] = parse_json(path.read_text())
            if unknown := sorted(set(raw) - {f.name for f in fields(cls)}):
                raise CalibrationError(f"{FILE_NAME}: unknown fields {unknown}; is it from a newer version?")
            check_fields(raw, cls)
            for name in ("quantiles", "length_curve"):
                raw[name] = tuple((float(x), float(y)) for x, y in raw.get(name, ()))
            raw["heads"] = tuple(HeadCalibration(**head) for head in raw.get("heads", ()))
            raw["traits"] = tuple(TraitCalibration(**trait) for trait in raw.get("traits", ()))
            return cls(**raw)
        except (TypeError, ValueError) as error:
            raise CalibrationError(f"{FILE_NAME} is unreadable: {error}. Run `rewardserve calibrate` again.") from error


def _numbers(value: object) -> Iterator[float]:
    """Every number in a field, at any depth."""
    if isinstance(value, float | int):
        yield value
    elif isinstance(value, dict):
        yield from (number for each in value.values() for number in _numbers(each))
    elif isinstance(value, list | tuple):
        yield from (number for each in value for number in _numbers(each))

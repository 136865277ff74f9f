"""A file beside the weights that lacks a field, or has one of another type, is refused in words that name the field."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from rewardserve.model.calibration import FILE_NAME, Calibration, CalibrationError, HeadCalibration

WHOLE = asdict(Calibration(0.0, 1.0, heads=(HeadCalibration("a", 0.0, 1.0),), quantiles=((0.5, 1.0),)))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"mean": None}, "mean must be a number, not null"),
        ({"std": "1"}, "std must be a number, not a text"),
        ({"std": True}, "std must be a number, not true or false"),
        ({"n": 1.5}, "n must be a whole number, not a number"),
        ({"quantiles": [[0.5]]}, "quantiles[0] must have 2 items, not 1"),
        ({"quantiles": 3}, "quantiles must be a list, not a whole number"),
        ({"heads": [{"name": "a", "mean": 0.0}]}, "heads[0].std is missing"),
        ({"heads": [{"name": "a", "mean": 0.0, "std": 1.0, "x": 1}]}, "heads[0].x is not known"),
        ({"traits": [[]]}, "traits[0] must be an object, not a list"),
    ],
)
def test_a_wrong_field_of_a_calibration_is_named(tmp_path, changes, says):
    (tmp_path / FILE_NAME).write_text(json.dumps({**WHOLE, **changes}))
    with pytest.raises(CalibrationError) as refused:
        Calibration.load(tmp_path)
    assert str(refused.value) == f"calibration.json is unreadable: {says}. Run `rewardserve calibrate` again."


@pytest.mark.parametrize(("text", "says"), [("{}", "mean is missing"), ("[]", "it must be an object, not a list")])
def test_a_calibration_without_fields_is_refused_in_words(tmp_path, text, says):
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(CalibrationError, match=f"calibration.json is unreadable: {says}"):
        Calibration.load(tmp_path)


def test_a_whole_calibration_is_read_as_before(tmp_path):
    (tmp_path / FILE_NAME).write_text(json.dumps({**WHOLE, "mean": 0, "cap_low": None, "cap_high": 2}))
    assert Calibration.load(tmp_path).cap_high == 2

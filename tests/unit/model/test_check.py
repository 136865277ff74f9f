"""The calibration in `rewardserve check` is one line that a person reads."""

from __future__ import annotations

import pytest

from rewardserve.model.calibration import Calibration
from rewardserve.model.check import calibration_line


@pytest.mark.parametrize(
    ("calibration", "line"),
    [
        (None, "none: rewards are raw"),
        (
            Calibration(mean=-0.92471, std=2.92466, n=72),
            "mean -0.9247, standard deviation 2.925, caps none; fitted, 72 samples",
        ),
        (
            Calibration(mean=0.0, std=1.0, cap_low=-1.5, cap_high=1.44712, n=1_200),
            "mean 0, standard deviation 1, caps low -1.5, high 1.447; fitted, 1200 samples",
        ),
    ],
)
def test_the_calibration_is_told_in_its_numbers(calibration, line):
    assert calibration_line(calibration) == line

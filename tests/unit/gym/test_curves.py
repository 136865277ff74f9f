"""Curves: windows, ends that count again, and the fall."""

import numpy as np
import pytest

from gym.curves import FALL, first_fall, means_N, smoothed_T


def test_every_window_has_its_mean():
    assert means_N([1.0, 2.0, 6.0, 0.0], 2) == pytest.approx([1.5, 4.0, 3.0])


def test_a_smoothed_curve_is_as_long_and_its_ends_count_again():
    curve = [4.0, 1.0, 1.0, 1.0, 7.0]
    assert smoothed_T(curve, 3) == pytest.approx([3.0, 2.0, 1.0, 3.0, 5.0])
    assert smoothed_T(curve, 1) == pytest.approx(curve)


@pytest.mark.parametrize(
    ("curve", "at"),
    [
        ([0.0, 1.0, 0.9, 1.0 - FALL - 0.01, 0.0], 3),
        ([0.0, 1.0, 1.0 - FALL + 0.01], None),
        ([3.0, 2.0, 4.0, 5.0], None),  # it fell, but went on to a higher peak
        ([1.0, 0.0], 1),
    ],
)
def test_a_fall_is_after_the_highest_point_only(curve, at):
    assert first_fall(np.array(curve)) == at

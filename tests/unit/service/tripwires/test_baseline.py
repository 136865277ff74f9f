"""What a run shows at its beginning, and how far a mean is from that."""

from __future__ import annotations

from statistics import fmean, pstdev

import pytest

from rewardserve.service.tripwires.baseline import Baseline, BaselineStat, is_part, least_deviation, part, usual
from rewardserve.service.tripwires.running_sums import RunningSums


def beginning(levels, parts):
    """Samples with a level and parts of the reward, and nothing else."""
    running_sums = RunningSums(n_parts=len(parts[0]))
    for level, each in zip(levels, parts, strict=True):
        running_sums.count("samples")
        running_sums.count_signed("level", level)
        running_sums.count("level_squared", level * level)
        running_sums.count_parts(each)
    return running_sums


LEVELS = (1.0, 3.0, -1.0, 5.0)
PARTS = ((1.0, 0.5), (3.0, 0.5), (-1.0, 0.5), (5.0, 0.5))
LEARNT = {
    "level": BaselineStat(2.0, 5**0.5, 4.0),
    "replays": BaselineStat(0.0, 0.05, 4.0),
    "part_0": BaselineStat(2.0, 5**0.5, 4.0),
    "part_1": BaselineStat(0.5, 0.0, 4.0),
}


def test_what_no_calibration_knows_is_learnt_from_the_samples_that_have_it():
    assert (fmean(LEVELS), pstdev(LEVELS)) == (2.0, 5**0.5)
    assert Baseline().with_learnt(beginning(LEVELS, PARTS)) == Baseline(LEARNT, 2.0 + 3.09 * 5**0.5)


def test_what_a_calibration_knows_is_not_learnt():
    known = Baseline({"level": BaselineStat(0.0, 1.0), "part_1": BaselineStat(9.0, 9.0)}, saturation=7.0)
    assert known.with_learnt(beginning(LEVELS, PARTS)) == Baseline({**LEARNT, **known.usual}, 7.0)


def test_nothing_is_learnt_of_no_samples():
    assert Baseline().with_learnt(RunningSums(n_parts=1)) == Baseline()


def test_a_deviation_is_no_smaller_than_makes_sense():
    assert usual("length", 4.0, 0.01) == BaselineStat(4.0, 0.05, 1.0)
    assert usual("length", 4.0, 0.5, 7.0) == BaselineStat(4.0, 0.5, 7.0)
    names = ("missing_end", "repetition", "length", "spread", "level", "distance")
    assert [least_deviation(name) for name in names] == [0.1, 0.01, 0.05, 0.05, 0.1, 0.05]


def test_a_shift_is_in_standard_deviations_and_none_where_one_side_is_unknown():
    reference = Baseline({"length": BaselineStat(4.0, 0.5)})
    assert (reference.shift("length", 5.5), reference.shift("length", 3.75)) == (3.0, -0.5)
    assert (reference.shift("length", None), reference.shift("level", 5.0)) == (None, None)


def test_parts_are_numbered_and_known_by_their_names():
    assert part(3) == "part_3"
    assert [is_part(name) for name in (part(0), part(12), "level", "depart_0")] == [True, True, False, False]


@pytest.mark.parametrize("level", [0.0, 0.1])
def test_levels_that_do_not_vary_have_the_least_deviation(level):
    learnt = Baseline().with_learnt(beginning((level,) * 10, ((0.0,),) * 10))
    assert learnt.usual["level"] == BaselineStat(pytest.approx(level), 0.1, 10.0)
    assert learnt.saturation == pytest.approx(level + 0.309)

"""What a run shows at its beginning, and how far a mean is from that."""

from __future__ import annotations

from statistics import fmean, pstdev

import pytest

from rewardserve.service.tripwires.reference import Reference, Usual, is_part, least_deviation, part, usual
from rewardserve.service.tripwires.tally import Tally


def beginning(levels, parts):
    """Samples with a level and parts of the reward, and nothing else."""
    tally = Tally(n_parts=len(parts[0]))
    for level, each in zip(levels, parts, strict=True):
        tally.count("samples")
        tally.count_signed("level", level)
        tally.count("level_squared", level * level)
        tally.count_parts(each)
    return tally


LEVELS = (1.0, 3.0, -1.0, 5.0)
PARTS = ((1.0, 0.5), (3.0, 0.5), (-1.0, 0.5), (5.0, 0.5))
LEARNT = {
    "level": Usual(2.0, 5**0.5, 4.0),
    "replays": Usual(0.0, 0.05, 4.0),
    "part_0": Usual(2.0, 5**0.5, 4.0),
    "part_1": Usual(0.5, 0.0, 4.0),
}


def test_what_no_calibration_knows_is_learnt_from_the_samples_that_have_it():
    assert (fmean(LEVELS), pstdev(LEVELS)) == (2.0, 5**0.5)
    assert Reference().with_learnt(beginning(LEVELS, PARTS)) == Reference(LEARNT, 2.0 + 3.09 * 5**0.5)


def test_what_a_calibration_knows_is_not_learnt():
    known = Reference({"level": Usual(0.0, 1.0), "part_1": Usual(9.0, 9.0)}, saturation=7.0)
    assert known.with_learnt(beginning(LEVELS, PARTS)) == Reference({**LEARNT, **known.usual}, 7.0)


def test_nothing_is_learnt_of_no_samples():
    assert Reference().with_learnt(Tally(n_parts=1)) == Reference()


def test_a_deviation_is_no_smaller_than_makes_sense():
    assert usual("length", 4.0, 0.01) == Usual(4.0, 0.05, 1.0)
    assert usual("length", 4.0, 0.5, 7.0) == Usual(4.0, 0.5, 7.0)
    names = ("missing_end", "repetition", "length", "spread", "level", "distance")
    assert [least_deviation(name) for name in names] == [0.1, 0.01, 0.05, 0.05, 0.1, 0.05]


def test_a_shift_is_in_standard_deviations_and_none_where_one_side_is_unknown():
    reference = Reference({"length": Usual(4.0, 0.5)})
    assert (reference.shift("length", 5.5), reference.shift("length", 3.75)) == (3.0, -0.5)
    assert (reference.shift("length", None), reference.shift("level", 5.0)) == (None, None)


def test_parts_are_numbered_and_known_by_their_names():
    assert part(3) == "part_3"
    assert [is_part(name) for name in (part(0), part(12), "level", "depart_0")] == [True, True, False, False]


@pytest.mark.parametrize("level", [0.0, 0.1])
def test_levels_that_do_not_vary_have_the_least_deviation(level):
    learnt = Reference().with_learnt(beginning((level,) * 10, ((0.0,),) * 10))
    assert learnt.usual["level"] == Usual(pytest.approx(level), 0.1, 10.0)
    assert learnt.saturation == pytest.approx(level + 0.309)

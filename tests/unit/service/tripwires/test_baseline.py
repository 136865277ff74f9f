"""What a run shows at its beginning, and how far a mean is from that."""

from __future__ import annotations

from math import isfinite
from statistics import fmean, pstdev

import pytest

from rewardserve.service.tripwires.baseline import (
    Baseline,
    BaselineStat,
    baseline_stat,
    component,
    is_component,
    min_std,
)
from rewardserve.service.tripwires.running_sums import RunningSums


def beginning(levels, components):
    """Samples with a level and parts of the reward, and nothing else."""
    running_sums = RunningSums(n_components=len(components[0]))
    for score, each in zip(levels, components, strict=True):
        running_sums.add("samples")
        running_sums.add("ids")
        running_sums.add_signed("score", score)
        running_sums.add("score_squared", score * score)
        running_sums.add_components(each)
    return running_sums


LEVELS = (1.0, 3.0, -1.0, 5.0)
PARTS = ((1.0, 0.5), (3.0, 0.5), (-1.0, 0.5), (5.0, 0.5))
LEARNT = {
    "score": BaselineStat(2.0, 5**0.5, 4.0),
    "id_reuse": BaselineStat(0.0, 0.05, 4.0),
    "component_0": BaselineStat(2.0, 5**0.5, 4.0),
    "component_1": BaselineStat(0.5, 0.0, 4.0),
}


def test_what_no_calibration_knows_is_learned_from_the_samples_that_have_it():
    assert (fmean(LEVELS), pstdev(LEVELS)) == (2.0, 5**0.5)
    assert Baseline().with_learned(beginning(LEVELS, PARTS)) == Baseline(LEARNT, 2.0 + 3.09 * 5**0.5)


def test_what_a_calibration_knows_is_not_learned():
    known = Baseline({"score": BaselineStat(0.0, 1.0), "component_1": BaselineStat(9.0, 9.0)}, saturation=7.0)
    assert known.with_learned(beginning(LEVELS, PARTS)) == Baseline({**LEARNT, **known.stats}, 7.0)


def test_nothing_is_learned_of_no_samples():
    assert Baseline().with_learned(RunningSums(n_components=1)) == Baseline()


def test_a_deviation_is_no_smaller_than_makes_sense():
    assert baseline_stat("length", 4.0, 0.01) == BaselineStat(4.0, 0.05, 1.0)
    assert baseline_stat("length", 4.0, 0.5, 7.0) == BaselineStat(4.0, 0.5, 7.0)
    names = ("missing_end", "repetition", "length", "spread", "score", "distance")
    assert [min_std(name) for name in names] == [0.1, 0.01, 0.05, 0.05, 0.1, 0.05]


def test_a_shift_is_in_standard_deviations_and_none_where_one_side_is_unknown():
    baseline = Baseline({"length": BaselineStat(4.0, 0.5)})
    assert (baseline.shift("length", 5.5), baseline.shift("length", 3.75)) == (3.0, -0.5)
    assert (baseline.shift("length", None), baseline.shift("score", 5.0)) == (None, None)


def test_parts_are_numbered_and_known_by_their_names():
    assert component(3) == "component_3"
    assert [is_component(name) for name in (component(0), component(12), "score", "depart_0")] == [
        True,
        True,
        False,
        False,
    ]


@pytest.mark.parametrize("score", [0.0, 0.1])
def test_levels_that_do_not_vary_have_the_least_deviation(score):
    learned = Baseline().with_learned(beginning((score,) * 10, ((0.0,),) * 10))
    assert learned.stats["score"] == BaselineStat(pytest.approx(score), 0.1, 10.0)
    assert learned.saturation == pytest.approx(score + 0.309)


@pytest.mark.parametrize("huge", [1e200, 1.7e308, float("inf")])
def test_a_baseline_of_numbers_that_overflow_can_be_stored(huge):
    learned = Baseline().with_learned(beginning((huge, huge), ((huge,),) * 2))
    numbers = [each for stat in learned.stats.values() for each in (stat.mean, stat.std, stat.error)]
    assert all(map(isfinite, numbers))

"""Sums, and the means and deviations that follow from them, of numbers that can be added up by hand."""

from __future__ import annotations

from statistics import fmean, pstdev, pvariance

import pytest

from rewardserve.service.tripwires.running_sums import ENTRIES, RunningSums

LEVELS = (0.5, -2.0, 4.0, 0.0)


def entries(running_sums):
    """Those that are not zero."""
    return {name: running_sums[name] for name in ENTRIES if running_sums[name]}


def test_new_running_sums_has_a_zero_for_each_entry_and_three_for_each_part():
    assert RunningSums().sums == [0.0] * len(ENTRIES)
    assert RunningSums(n_components=2).sums == [0.0] * (len(ENTRIES) + 6)
    assert (RunningSums().n_components, RunningSums(n_components=2).n_components) == (0, 2)
    assert RunningSums(iter([1.0, 2.0])).sums == [1.0, 2.0]


def test_numbers_are_added_to_their_entries():
    running_sums = RunningSums()
    for _ in range(2):
        running_sums.add("samples")
        running_sums.add("spreads", 3.0)
        running_sums.add_squared("length", 3.0)
    for score in LEVELS:
        running_sums.add_signed("score", score)
    assert entries(running_sums) == {
        "samples": 2.0, "spreads": 6.0, "length": 6.0, "length_squared": 18.0, "score_positive": 4.5, "score_negative": 2.0,
    }  # fmt: skip
    assert entries(running_sums + running_sums) == {name: 2 * value for name, value in entries(running_sums).items()}


def test_means_and_deviations_are_those_of_the_samples_that_have_the_number():
    running_sums = RunningSums()
    running_sums.add("samples", 4.0)
    running_sums.add("spreads", 2.0)
    for score in LEVELS:
        running_sums.add_signed("score", score)
        running_sums.add("score_squared", score * score)
    for spread in (0.25, 0.75):
        running_sums.add_squared("spread", spread)
    assert (running_sums.n_of("score"), running_sums.n_of("spread"), running_sums.n_of("audit")) == (4.0, 2.0, 0.0)
    assert (running_sums.mean("score"), running_sums.std("score")) == (
        fmean(LEVELS),
        pytest.approx(pstdev(LEVELS)),
    )
    assert (running_sums.mean("spread"), running_sums.std("spread")) == (0.5, pytest.approx(0.25))
    assert (running_sums.mean("distance"), running_sums.std("distance"), running_sums.mean("audit")) == (
        None,
        None,
        None,
    )


def test_rounding_makes_no_deviation_of_equal_numbers_imaginary():
    running_sums = RunningSums()
    for _ in range(10):
        running_sums.add("spreads")
        running_sums.add_squared("spread", 0.7)
    assert running_sums["spread_squared"] / 10 < (running_sums["spread"] / 10) ** 2, (
        "which would be the root of a negative number"
    )
    assert running_sums.std("spread") == 0.0


PARTS = ((0.0, -1.0), (0.5, 2.0), (3.0, -4.0))


def counted(components):
    running_sums = RunningSums(n_components=len(components[0]))
    for each in components:
        running_sums.add("samples")
        running_sums.add_components(each)
    return running_sums


def test_each_part_of_a_reward_has_a_sum_for_each_sign_and_one_of_squares():
    assert counted(PARTS).sums[len(ENTRIES) :] == [3.5, 0.0, 9.25, 2.0, 5.0, 21.0]


def test_parts_have_mean_and_variance_over_all_samples_and_none_before_there_is_one():
    expected = [(fmean(each), pytest.approx(pvariance(each))) for each in zip(*PARTS, strict=True)]
    assert counted(PARTS).components() == expected
    assert counted([(0.25,)] * 2).components() == [(0.25, 0.0)]
    assert counted([(0.7,)] * 10).components()[0][1] == 0.0
    assert RunningSums(n_components=2).components() == []


def test_other_parts_begin_at_zero_and_nothing_else_is_lost():
    running_sums = counted(PARTS)
    other = running_sums.with_components(3)
    assert other.sums == running_sums.sums[: len(ENTRIES)] + [0.0] * 9
    assert other.n_components == 3

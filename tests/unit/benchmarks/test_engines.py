"""Medians and ratios of the engine benchmark, against numbers worked out by hand."""

import pytest

from benchmarks.engines import Round, figures_of, rotated
from benchmarks.machine import Cost, spread
from benchmarks.models import MODELS


def test_ratios_are_taken_within_a_round_and_then_the_median():
    # The second round ran on a busy machine: everything took ten times as long, the ratio did not change.
    rounds = [
        Round(Cost(1.0, 2.0), base=Cost(3.0, 8.0), peak=1e9),
        Round(Cost(10.0, 20.0), base=Cost(30.0, 80.0), peak=1e8),
        Round(Cost(2.0, 4.0), base=Cost(7.0, 8.0), peak=1e9),
    ]
    figures = figures_of("m30", "ragged", "packed", [60, 40], rounds, error=1e-6)
    assert figures.tokens == 100
    assert figures.cpu_s == 2.0
    assert figures.cpu_ratio == 3.0
    assert figures.wall_ratio == 4.0
    assert figures.tokens_per_cpu_s == 50.0
    assert figures.tokens_per_wall_s == 25.0
    flops = MODELS["m30"].flops(60) + MODELS["m30"].flops(40)
    assert figures.of_peak == pytest.approx(flops / 1.0 / 1e9)


def test_each_round_begins_with_another_engine():
    assert [rotated("abc", n)[0] for n in range(4)] == ["a", "b", "c", "a"]
    assert sorted(rotated("abc", 1)) == ["a", "b", "c"]


def test_reference_rows_are_spread_over_the_whole_workload():
    assert spread(100, 4) == [0, 25, 50, 75]
    assert spread(2, 24) == [0, 1]

"""Figures of the ablation of training options, on scores that are written by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import training_options
from benchmarks.training_options import ROWS, HeldOutScores, Row
from rewardserve.training import recipe


def scores(diff, longer=(1, 1, -1, -1), group=(0, 0, 1, 1)):
    diff = np.array(diff, float)
    both = np.concatenate([diff, np.zeros(4)])
    shift = {"all": np.array([0.5, 1.5]), "seen": np.array([0.0, 2.0]), "unseen": np.array([1.0, 1.0])}
    return HeldOutScores(
        diff, np.array(longer), both, np.concatenate([diff, np.zeros(4)]), np.array(group), shift, np.array([0, 1])
    )


def test_figures_are_of_the_pairs_and_changes_are_against_the_first_row():
    first, other = scores([1, 1, 1, 1]), scores([1, 1, 1, -1])
    row = training_options._row("other", other, first, 200)
    assert row.figures["accuracy"][0] == 0.75
    assert row.figures["length-balanced"][0] == 0.75
    assert row.figures["r of length"][0] == pytest.approx(1.0)
    assert row.figures["shift, sd"][0] == 1.0
    assert row.changes["accuracy"][0] == -0.25
    assert row.changes["accuracy"][1:] == (-0.5, 0.0), "whole groups are drawn: both pairs of a group, or none"
    assert row.changes["shift, sd"] == (0.0, 0.0, 0.0)
    assert np.isfinite(row.figures["length-balanced"][1]), "draws without a side do not count"


def test_a_refused_row_is_shown_with_its_reason():
    text = training_options.table([Row("a", {}, {}, "no pair differs in markup")])
    assert "| a | refused: no pair differs in markup |" in text


@pytest.mark.parametrize("name", ROWS)
def test_every_row_is_a_valid_recipe(name):
    recipe.load(training_options.RECIPE, ROWS[name])

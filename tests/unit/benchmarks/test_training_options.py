"""Figures of the ablation of training options, on scores that are written by hand."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import training_options
from benchmarks.training_options import ROWS, HeldOutScores, Row
from rewardserve.training.settings import recipe
from tests.support import planted_pairs as world


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


def test_rows_are_cross_validated_over_features_that_are_kept(tmp_path, monkeypatch):
    rows = world.planted_rows(80)
    pairs = world.write_jsonl(tmp_path / "pairs.jsonl", rows)
    config = recipe.parse(
        {
            "model": {"path": str(world.language_model(tmp_path / "sft"))},
            "data": {"sources": [{"path": str(pairs)}]},
            "encoding": {"max_tokens": 128},
            "method": {"name": "frozen"},
            "optim": {"lr": 1e-2, "epochs": 4},
            "eval": {"bootstrap": 20, "invariance_pairs": 20},
            "output": {"folder": str(tmp_path / "out")},
        }
    )
    kept = tmp_path / "features.pt"
    wanted = {
        name: ROWS[name] for name in ("none", "indifference.length=1", "indifference.markup=1", "consistency=1, half")
    }
    none, length, markup, consistent = training_options.ablate(config, 2, wanted, kept)
    assert none.changes["accuracy"] == (0.0, 0.0, 0.0)
    assert length.figures["accuracy"] != none.figures["accuracy"]
    assert "no training pair do the responses differ in markup" in markup.refused
    assert consistent.changes["shift, seen half"][0] < 0
    monkeypatch.setattr(training_options.scoring, "last_hidden", None)  # nothing is left to compute
    again = training_options.ablate(config, 2, wanted, kept)
    assert [row.figures for row in again] == [row.figures for row in (none, length, markup, consistent)]

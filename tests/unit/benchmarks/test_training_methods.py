"""Tables of the ablation of training methods: arms, means of trainings, and the page they are written into."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks import training_methods
from benchmarks.training_methods import SUITES, Arm, Row
from rewardserve.training.dataset.feedback import Graded
from rewardserve.training.dataset.sequences import FeedbackTable
from rewardserve.training.settings import recipe
from tests.support import planted_pairs as world


@pytest.mark.parametrize(("suite", "arm"), [(suite, arm) for suite, arms in SUITES.items() for arm in arms])
def test_every_arm_is_a_valid_recipe(suite, arm):
    recipe.load(training_methods.RECIPE, SUITES[suite][arm].overrides)


def test_a_ranking_holds_its_decided_pairs_and_its_ties():
    ranking = Graded("f:1", "s", "g", "score", "rankings", ("A", "B", "C"), ("a", "b", "c"), (-2.0, -1.0, -2.0))
    table = FeedbackTable((ranking,), (), ((7, 8, 9),), {})
    found = training_methods.as_pairs_and_ties(table)
    assert [(p.chosen_text, p.rejected_text, p.tie) for p in found.pairs] == [
        ("b", "a", False), ("a", "c", True), ("b", "c", False),
    ]  # fmt: skip
    assert found.rows == ((8, 7), (7, 9), (8, 9))


def test_a_table_takes_the_place_of_its_old_one_and_leaves_the_others():
    row = Row("full", 10, (0.6, 0.5, 0.7), (0.1, 0.0, 0.2), 1.5)
    page = training_methods.with_table("# Page\n", "methods on a", [row])
    page = training_methods.with_table(page, "methods on b", [row])
    again = training_methods.with_table(page, "methods on a", [Row("lora", 10, (0.4, 0.3, 0.5), (0.0, 0.0, 0.0), 2)])
    assert "| full | 0.600 [0.500, 0.700] | +0.100 [+0.000, +0.200] | 1.5 |" in page
    assert again.count("| full |") == 1
    assert "| lora | 0.400 [0.300, 0.500] |  | 2.0 |" in again
    assert again.startswith("# Page\n")


def test_means_of_trainings_are_judged_on_the_same_held_out_pairs(tmp_path):
    pairs = world.write_jsonl(tmp_path / "pairs.jsonl", world.planted_rows(60))
    config = recipe.parse(
        {
            "model": {"path": str(world.language_model(tmp_path / "sft", layers=1))},
            "data": {"sources": [{"path": str(pairs)}]},
            "encoding": {"max_tokens": 128},
            "eval": {"bootstrap": 20},
            "output": {"folder": str(tmp_path / "out")},
        }
    )
    arms = {"frozen": Arm(training_methods._CONVEX), "full": Arm(("optim.lr=0.01", "optim.max_steps=3"), seeds=2)}
    rows = list(training_methods.ablate(config, 2, arms))
    assert [row.name for row in rows] == [
        "frozen", "full", "full, mean of the scores of 2", "full, mean of the weights of 2",
    ]  # fmt: skip
    assert {row.n_pairs for row in rows} == {60}
    assert rows[0].change == (0.0, 0.0, 0.0)
    for row in rows[1:]:
        assert row.change[0] == pytest.approx(row.accuracy[0] - rows[0].accuracy[0])
        assert np.isfinite(row.accuracy).all()

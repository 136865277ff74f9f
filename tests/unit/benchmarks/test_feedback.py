"""The ablation of ratings: arms that differ by their kinds and stages, on pairs of groups that no fold has trained on."""

from __future__ import annotations

import pytest

from benchmarks import feedback
from rewardserve.training.settings import recipe
from tests.support import planted_pairs as world


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    pairs = world.planted_rows(120, n_groups=6)
    ratings = [
        {"group": row["group"], "prompt": row["prompt"], "source": "rated", "response": row[side], "rating": rating}
        for row in world.planted_rows(240, seed=1, n_groups=6)
        for side, rating in (("chosen", 1), ("rejected", 5))
    ]
    sources = [world.write_jsonl(folder / f"{name}.jsonl", rows) for name, rows in (("p", pairs), ("r", ratings))]
    path = world.recipe_file(
        folder / "recipe.yaml",
        model={"path": str(world.language_model(folder / "sft"))},
        data={"sources": [{"path": str(sources[0])}, {"path": str(sources[1]), "better": "lower"}]},
        output={"folder": str(folder / "out")},
        method={"name": "frozen"},
        loss={"ratings": "huber"},
        optim={"lr": 0.03, "max_steps": 30},
        eval={"bootstrap": 50},
    )
    return recipe.load(path)


def test_ratings_of_the_same_quality_help_a_few_pairs_and_each_arm_has_a_row(config):
    rows = {(row.n_pairs, row.arm): row for row in feedback.ablate(config, 3, [4, 1000])}
    assert set(rows) == {(4, arm) for arm in feedback.ARMS} | {(1000, arm) for arm in feedback.ARMS if arm != "ratings"}
    few = rows[4, "ratings, then pairs"]
    assert few.change is not None
    assert few.change.value == pytest.approx(few.accuracy.value - rows[4, "pairs"].accuracy.value)
    assert few.change.value > 0
    assert few.accuracy.low <= few.accuracy.value <= few.accuracy.high
    assert rows[4, "pairs"].change is None
    assert rows[4, "ratings"].spearman_within > 0.2
    assert rows[1000, "pairs"].accuracy.value > rows[4, "pairs"].accuracy.value


def test_the_table_names_the_arms_and_their_numbers(config):
    interval = feedback.Interval(0.5, 0.4, 0.6)
    rows = [feedback.Row(30, "pairs", interval, None, 0.25), feedback.Row(30, "ratings", interval, interval, None)]
    assert list(feedback.table(rows))[2:] == [
        "| 30 | pairs | 0.500 [0.400, 0.600] |  | 0.250 |",
        "| none | ratings | 0.500 [0.400, 0.600] | +0.500 [+0.400, +0.600] |  |",
    ]

"""The ablation: rows that differ by kind, on pairs of groups that no fold has trained on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from benchmarks import augmentation
from rewardserve.training.augmentation.augment import KINDS
from rewardserve.training.settings import recipe
from rewardserve.training.settings.validation import ConfigError
from tests.support import planted_pairs as world


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    rows = [
        {**r, "chosen": f"{r['chosen']} {world.GOOD}", "rejected": f"{r['rejected']} {world.BAD}"}
        for r in world.planted_rows(120, n_groups=6)
    ]
    path = world.recipe_file(
        folder / "recipe.yaml",
        model={"path": str(world.language_model(folder / "sft")), "head_init": "logistic", "head_l2": 0.01},
        data={"sources": [{"path": str(world.write_jsonl(folder / "pairs.jsonl", rows))}]},
        output={"folder": str(folder / "out")},
        method={"name": "frozen"},
        optim={"epochs": 0},
        eval={"bootstrap": 50},
        augment={"repeated": 0.5, "empty": 0.2},
    )
    return recipe.load(path)


def test_each_kind_has_a_row_beside_those_of_the_recipe_and_a_trained_one_is_resisted(config):
    rows = {row.name: row for row in augmentation.ablate(config, 3, rate=0.3, n_twice=20)}
    chosen = ["repeated", "empty"]
    alone, without = [f"{kind} alone" for kind in KINDS], [f"recipe without {kind}" for kind in reversed(chosen)]
    assert set(rows) == {"none", *alone, "recipe", *without}
    assert rows["none"].n_made == 0
    assert rows["none"].change["score"] == (0, 0, 0)
    assert rows["recipe"].n_made == rows["repeated alone"].n_made + rows["empty alone"].n_made
    assert rows["repeated alone"].made_won["repeated"] > rows["none"].made_won["repeated"]
    assert rows["repeated alone"].pay[0] < rows["none"].pay[0]
    lines = list(augmentation.table(list(rows.values()), ("score",)))
    assert {line.count("|") for line in lines} == {9}
    assert len(lines) == len(rows) + 2


def test_a_recipe_that_takes_steps_is_refused(config):
    with pytest.raises(ConfigError, match="the ablation fits convex heads"):
        augmentation.ablate(replace(config, optim=replace(config.optim, epochs=1.0)), 3, rate=0.1, n_twice=5)

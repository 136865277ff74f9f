"""`rewardserve crossvalidate`, from a file of pairs to a page of figures that no fold has cheated for."""

from __future__ import annotations

import json

import pytest

from rewardserve.cli import main
from rewardserve.training import crossvalidate, workflow
from rewardserve.training.batches import scoring
from rewardserve.training.settings.recipe import load
from tests.support import planted_pairs as world

pytestmark = pytest.mark.usefixtures("undrawn")

N_PAIRS, N_GROUPS = 240, 12
METHODS = {
    "convex": {
        "method": {"name": "frozen"},
        "model": {"head_init": "logistic"},
        "optim": {"epochs": 0},
    },
    "frozen": {"method": {"name": "frozen"}, "optim": {"lr": 3e-2, "epochs": 15, "schedule": "constant"}},
    "lora": {"method": {"name": "lora", "rank": 4}, "model": {"head_init": "logistic"}, "optim": {"lr": 1e-2}},
    "full": {"optim": {"lr": 3e-3, "epochs": 2}},
}


@pytest.fixture(scope="module")
def sft(tmp_path_factory):
    return world.language_model(tmp_path_factory.mktemp("sft"))


def clear_rows():
    """The planted word is said once more at the end: a random backbone of width 32 forgets what came early."""
    return [
        {**r, "chosen": f"{r['chosen']} {world.GOOD}", "rejected": f"{r['rejected']} {world.BAD}"}
        for r in world.planted_rows(N_PAIRS, n_groups=N_GROUPS)
    ]


def recipe_for(folder, sft, rows, **sections):
    pairs = world.write_jsonl(folder / "pairs.jsonl", rows)
    whole = {
        "model": {"path": str(sft), **sections.pop("model", {})},
        "data": {"sources": [{"path": str(pairs)}], "eval_fraction": 0.25},
        "encoding": {"max_tokens": 128},
        "output": {"folder": str(folder / "out")},
        "eval": {"bootstrap": 50},
    }
    return world.recipe_file(folder / "recipe.yaml", **(whole | sections))


@pytest.mark.parametrize("method", METHODS)
def test_the_planted_preference_is_found_on_every_pair_out_of_fold(tmp_path, sft, method, capsys):
    recipe = recipe_for(tmp_path, sft, clear_rows(), **METHODS[method])
    assert main(["crossvalidate", "--config", str(recipe), "--folds", "3"]) == 0
    found = json.loads((tmp_path / "out" / "crossvalidation.json").read_text())
    (line,) = found["metrics"]
    assert line["accuracy"] > 0.9
    assert (line["n_pairs"], line["n_groups"]) == (N_PAIRS, N_GROUPS)
    assert line["group_accuracy"]["low"] <= line["accuracy"] <= line["group_accuracy"]["high"]
    assert line["nll"] < 0.6
    assert "; longer text wins " in capsys.readouterr().out
    assert "accuracy of groups" in (tmp_path / "out" / "crossvalidation.html").read_text()
    assert {f.name for f in (tmp_path / "out").iterdir()} - {".lock"} == {
        "crossvalidation.html",
        "crossvalidation.json",
    }


def test_made_pairs_are_in_no_figure(tmp_path, sft):
    recipe = recipe_for(
        tmp_path, sft, clear_rows(), **METHODS["convex"], augment={"repeated": 0.5, "other_prompt": 0.5}
    )
    assert main(["crossvalidate", "--config", str(recipe), "--folds", "3"]) == 0
    found = json.loads((tmp_path / "out" / "crossvalidation.json").read_text())
    (line,) = found["metrics"]
    assert line["n_pairs"] == found["facts"]["pairs"] == N_PAIRS
    assert set(found["facts"]["pairs made"]) == {"repeated", "other_prompt"}


def test_a_label_that_only_its_own_group_explains_is_not_found_out_of_fold(tmp_path, sft):
    """Half of the groups like one word, half the other: a model that saw the group would know, no other can."""
    rows = [
        r if int(r["group"][1:]) % 2 else {**r, "chosen": r["rejected"], "rejected": r["chosen"]}
        for r in world.planted_rows(240, n_groups=N_GROUPS)
    ]
    recipe = recipe_for(tmp_path, sft, rows, **METHODS["convex"])
    found = crossvalidate.crossvalidate(load(recipe), N_GROUPS)
    assert found.metrics[0].accuracy < 0.5
    assert len(found.by_group[0]) == N_GROUPS


def test_a_frozen_trunk_is_run_once_for_all_folds_and_each_fold_begins_anew(tmp_path, sft, monkeypatch):
    forwards, begun = [], []
    real_forwards, real_initialise = scoring._forwards, workflow.initialise_heads
    monkeypatch.setattr(
        scoring, "_forwards", lambda n, rows, *a: forwards.append(len(rows)) or real_forwards(n, rows, *a)
    )
    monkeypatch.setattr(
        workflow,
        "initialise_heads",
        lambda c, start, *a: begun.append(start.network.heads.weight.tolist()) or real_initialise(c, start, *a),
    )
    recipe = recipe_for(tmp_path, sft, world.planted_rows(60, n_groups=N_GROUPS), **METHODS["frozen"])
    crossvalidate.crossvalidate(load(recipe, ["optim.epochs=1"]), 4)
    assert len(forwards) == 1
    assert len(begun) == 4
    assert all(heads == begun[0] for heads in begun)


@pytest.mark.parametrize(
    ("folds", "override", "says"),
    [
        ("1", "seed=0", "--folds is 1"),
        ("3", "data.eval_sources=[{path: x.jsonl}]", "leave data.eval_sources out"),
        ("3", "data.sources.0.group_key=source", "fall into 1 fold"),
    ],
)
def test_what_makes_no_cross_validation_is_refused(tmp_path, sft, capsys, folds, override, says):
    recipe = recipe_for(tmp_path, sft, world.planted_rows(20), **METHODS["convex"])
    assert main(["crossvalidate", "--config", str(recipe), "--folds", folds, "--set", override]) == 2
    assert says in capsys.readouterr().err

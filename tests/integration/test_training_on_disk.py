"""`data.on_disk`: the same run, with its items in temporary files."""

from __future__ import annotations

import json

import pytest

from rewardserve.cli import main
from tests.support import planted_pairs as world

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def sft(tmp_path_factory):
    return world.language_model(tmp_path_factory.mktemp("sft"))


def recipe_in(folder, sft, **data):
    folder.mkdir()
    rows = world.planted_rows(120)
    files = [world.write_jsonl(folder / name, part) for name, part in (("a.jsonl", rows[:70]), ("b.jsonl", rows[60:]))]
    extra = world.write_jsonl(folder / "extra.jsonl", world.planted_rows(20, seed=5, n_groups=20))
    return str(
        world.recipe_file(
            folder / "recipe.yaml",
            model={"path": str(sft)},
            data={"sources": [{"path": str(f), "name": "made"} for f in files], "eval_fraction": 0.25, **data},
            counterexamples={"path": str(extra)},
            encoding={"max_tokens": 128},
            optim={"lr": 1e-3, "batch_pairs": 8, "accumulate": 2, "epochs": 2},
            eval={"bootstrap": 20, "invariance_pairs": 0},
            output={"folder": str(folder / "out"), "log_steps": 1},
        )
    )


def test_losses_counts_and_data_digest_are_those_of_items_in_memory(tmp_path, sft):
    for name, data in (("memory", {}), ("disk", {"on_disk": True})):
        assert main(["train", "--config", recipe_in(tmp_path / name, sft, **data)]) == 0
    reports = [
        json.loads((tmp_path / n / "out" / "checkpoint" / "training_report.json").read_text())
        for n in ("memory", "disk")
    ]
    same = (
        "training pairs",
        "training sequences",
        "duplicate pairs",
        "contradicting pairs",
        "held-out pairs",
        "curves",
        "metrics",
    )
    for name in same:
        assert reports[1][name] == reports[0][name], name
    assert len(reports[0]["curves"]["loss"]) > 4


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("method.name=frozen", "method.name: frozen"),
        ("augment.empty=0.5", "augment"),
        ("consistency.weight=1", "consistency"),
        ("data.balance_length=true", "data.balance_length"),
    ],
)
def test_settings_that_hold_every_item_in_memory_are_refused(tmp_path, sft, capsys, setting, named):
    recipe = recipe_in(tmp_path / "run", sft, on_disk=True)
    assert main(["train", "--config", recipe, "--set", setting]) == 2
    assert f"data.on_disk with {named}" in capsys.readouterr().err

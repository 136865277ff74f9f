"""Two processes train what one process trains with twice the accumulation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rewardserve.cli import main
from rewardserve.model.contract import ScoringContract
from tests.support import planted_pairs as world

pytestmark = pytest.mark.usefixtures("undrawn")

ROOT = Path(__file__).parents[2]


def recipe_in(folder: Path, sft: Path, pairs: Path, sections: dict[str, Any] | None = None, **optim: float) -> Path:
    folder.mkdir()
    return world.recipe_file(
        folder / "recipe.yaml",
        model={"path": str(sft)},
        # No pair is held out: 96 pairs are 12 batches of 8, so no batch is repeated to make the ranks even.
        data={"sources": [{"path": str(pairs)}], "eval_fraction": 0},
        encoding={"max_tokens": 128},
        optim={"lr": 1e-3, "max_steps": 10, "batch_pairs": 8, **optim},
        output={"folder": str(folder / "out"), "log_steps": 1},
        **(sections or {}),
    )


def curve(folder: Path) -> list[tuple[float, float]]:
    (state,) = (folder / "out" / "steps").glob("checkpoint-*/trainer_state.json")
    return [(line["loss"], line["accuracy"]) for line in json.loads(state.read_text())["log_history"] if "loss" in line]


@pytest.mark.slow
def test_two_ranks_walk_the_path_of_one(tmp_path):
    sft = world.language_model(tmp_path / "sft")
    rows = [{**row, "margin": 0.1 * (i % 5)} for i, row in enumerate(world.planted_rows(96))]
    pairs = world.write_jsonl(tmp_path / "pairs.jsonl", rows)
    assert main(["train", "--config", str(recipe_in(tmp_path / "one", sft, pairs, accumulate=2))]) == 0
    in_two_ranks(recipe_in(tmp_path / "two", sft, pairs))
    assert_same_path(tmp_path)


TERMS = {
    "penalties": {"indifference": {"length": 1.0, "memory": 0}, "consistency": {"weight": 0.5}},
    "length_head": {"length_head": {"correlation": 1.0, "orthogonality": 0.5, "memory": 0}},
}


@pytest.mark.slow
@pytest.mark.parametrize("terms", TERMS)
def test_correlations_of_two_ranks_are_those_of_one_batch_of_both(tmp_path, terms):
    sft = world.language_model(tmp_path / "sft")
    pairs = world.write_jsonl(tmp_path / "pairs.jsonl", world.planted_rows(96))
    one = recipe_in(tmp_path / "one", sft, pairs, TERMS[terms], batch_pairs=16)
    assert main(["train", "--config", str(one)]) == 0
    in_two_ranks(recipe_in(tmp_path / "two", sft, pairs, TERMS[terms]))
    assert_same_path(tmp_path)


def in_two_ranks(two: Path) -> None:
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    run = subprocess.run(
        [*launch, "-m", "rewardserve", "train", "--config", str(two)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True, text=True, timeout=110, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-2000:]


def assert_same_path(tmp_path: Path) -> None:
    assert len(curve(tmp_path / "one")) == 10
    for ours, theirs in zip(curve(tmp_path / "two"), curve(tmp_path / "one"), strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    scores = [
        [p.score for p in ScoringContract.load(tmp_path / n / "out" / "checkpoint").probes] for n in ("one", "two")
    ]
    assert scores[1] == pytest.approx(scores[0], abs=1e-5)

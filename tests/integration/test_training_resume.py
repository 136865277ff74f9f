"""A run that is killed goes on as if it had not been: the same losses, the same weights."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rewardserve.cli import main
from rewardserve.model.contract import ScoringContract
from tests.support import planted_pairs as world

pytestmark = pytest.mark.usefixtures("undrawn")

ROOT = Path(__file__).parents[2]
# Everything that has a state: dropout (random numbers), Adam, the schedule, the average, batches in the middle of an epoch.
SECTIONS = {
    "encoding": {"max_tokens": 128},
    "optim": {"lr": 1e-3, "max_steps": 120, "batching": "grouped", "batch_sequences": 16, "accumulate": 2, "ema": 0.99,
              "schedule": "cosine", "warmup": 0.1},
    "method": {"name": "lora", "rank": 2, "dropout": 0.2},
    "eval": {"bootstrap": 10},
    "seed": 3,
}  # fmt: skip


def recipe_in(folder: Path, sft: Path, pairs: Path) -> Path:
    return world.recipe_file(
        folder / "recipe.yaml",
        model={"path": str(sft)},
        data={"sources": [{"path": str(pairs)}], "eval_fraction": 0.2},
        output={"folder": str(folder / "out"), "save_steps": 9, "log_steps": 1, "keep": 2},
        **SECTIONS,
    )


def losses(folder: Path) -> dict[int, float]:
    state = max((folder / "out" / "steps").glob("checkpoint-*"), key=lambda p: int(p.name.rpartition("-")[2]))
    history = json.loads((state / "trainer_state.json").read_text())["log_history"]
    return {line["step"]: line["loss"] for line in history if "loss" in line}


def kill_after(recipe: Path, step: int, deadline_s: float = 60.0) -> None:
    """Start the command line and kill -9 it once a step checkpoint from `step` on is complete."""
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(
        [sys.executable, "-m", "rewardserve", "train", "--config", str(recipe)],
        cwd=ROOT, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )  # fmt: skip
    steps, until = recipe.parent / "out" / "steps", time.monotonic() + deadline_s
    try:
        while not any(int(p.parent.name.rpartition("-")[2]) >= step for p in steps.glob("checkpoint-*/complete")):
            assert run.poll() is None, run.stderr.read().decode()
            assert time.monotonic() < until, "no step checkpoint appeared"
            time.sleep(0.002)
        run.send_signal(signal.SIGKILL)
    finally:
        run.kill()
        run.wait()
        run.stderr.close()
    assert run.returncode == -signal.SIGKILL


@pytest.mark.slow
def test_a_killed_run_ends_with_the_losses_and_the_scores_of_one_that_was_not(tmp_path):
    sft = world.language_model(tmp_path / "sft")
    pairs = world.write_jsonl(tmp_path / "pairs.jsonl", world.planted_rows(300))
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    assert main(["train", "--config", str(recipe_in(tmp_path / "whole", sft, pairs))]) == 0

    recipe = recipe_in(tmp_path / "killed", sft, pairs)
    kill_after(recipe, step=81)
    done = losses(tmp_path / "killed")
    assert 81 <= max(done) < 120, "it was killed in the middle"
    assert main(["train", "--config", str(recipe), "--set", "output.resume=true"]) == 0

    whole, killed = losses(tmp_path / "whole"), losses(tmp_path / "killed")
    assert sorted(whole) == list(range(1, 121))
    assert killed == pytest.approx(whole, rel=1e-5, abs=1e-7)
    scores = [
        [p.score for p in ScoringContract.load(tmp_path / run / "out" / "checkpoint").probes]
        for run in ("whole", "killed")
    ]
    assert scores[1] == pytest.approx(scores[0], abs=1e-5)

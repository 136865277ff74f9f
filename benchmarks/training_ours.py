"""`python -m benchmarks.training_ours JOB`: our trainer on the job of `benchmarks.training`; prints its record."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.training_record import StepMeter
from rewardserve.training import workflow
from rewardserve.training.batches.members import trained_outputs
from rewardserve.training.batches.pair_batches import Collator
from rewardserve.training.loop.trainer import RewardTrainer
from rewardserve.training.settings import recipe
from rewardserve.training.settings.config import Config


def config_of(job: dict[str, Any]) -> Config:
    """The recipe of the job."""
    optim = {
        "lr": job["lr"], "schedule": "linear", "optimizer": job["optimizer"], "batch_pairs": job["batch_pairs"],
        "max_steps": job["steps"], "gradient_checkpointing": job["gradient_checkpointing"],
        "precision": "no" if job["device"] == "cpu" else "bf16",
    }  # fmt: skip
    return recipe.parse({
        "model": {"path": job["model"], "start": "reward"},
        "data": {"sources": [{"path": job["data"]}], "eval_fraction": 0.0, "on_bad_row": "skip"},
        "optim": optim,
        "output": {"folder": str(Path(job["folder"]) / "ours"), "log_steps": 1},
    })  # fmt: skip


def main() -> None:
    """Train, and print the record as JSON."""
    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    config = config_of(job)
    start = workflow.load_start(config)
    tables = workflow.encode(config, start)
    module, rows = workflow.network_and_rows(config, start, tables.train, None)
    collator = Collator(tables.train, trained_outputs(tables.train.items, config.model, config.seed), rows)
    steps = Path(config.output.folder) / "steps"
    trainer = RewardTrainer(module, tables.train, collator, config, evaluate_held_out=None, steps=steps)
    trainer.args.save_strategy = "no"
    meter = StepMeter()
    trainer.add_callback(meter)
    trainer.train()
    print(meter.record(trainer.state.log_history))


if __name__ == "__main__":
    main()

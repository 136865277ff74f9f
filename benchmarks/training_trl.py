"""`python -m benchmarks.training_trl JOB`: TRL's RewardTrainer on the job of `benchmarks.training`; prints its record.

Runs in TRL's environment, so it imports nothing of this repository but the record.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from benchmarks.training_record import StepMeter


def main() -> None:
    """Train, and print the record as JSON."""
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    job: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    is_cpu = job["device"] == "cpu"
    model = AutoModelForSequenceClassification.from_pretrained(job["model"], num_labels=1, dtype="float32")
    args = RewardConfig(
        output_dir=str(Path(job["folder"]) / "trl"),
        per_device_train_batch_size=job["batch_pairs"],
        max_steps=job["steps"],
        learning_rate=job["lr"],
        lr_scheduler_type="linear",
        optim=job["optimizer"],
        weight_decay=0.0,
        max_grad_norm=1.0,
        gradient_checkpointing=job["gradient_checkpointing"],
        bf16=not is_cpu,
        use_cpu=is_cpu,
        train_sampling_strategy="sequential",
        max_length=None,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    pairs = json.loads(Path(job["pairs"]).read_text())
    trainer = RewardTrainer(
        model=model,
        args=args,
        processing_class=AutoTokenizer.from_pretrained(job["model"]),
        train_dataset=Dataset.from_list(
            [{"chosen_ids": chosen, "rejected_ids": rejected} for chosen, rejected in pairs]
        ),
    )
    meter = StepMeter()
    trainer.add_callback(meter)
    trainer.train()
    print(meter.record(trainer.state.log_history))


if __name__ == "__main__":
    main()

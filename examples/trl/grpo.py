"""GRPO with rewards from a running server. Set its address and key in `REWARDSERVE_URL`, `REWARDSERVE_API_KEY`."""

from __future__ import annotations

import argparse

from datasets import load_dataset
from transformers import AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from rewardserve_client.trl import reward_function


def main() -> None:
    """Train a policy on a data set with a column `prompt` of messages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    parser.add_argument("--data", default="trl-lib/ultrafeedback-prompt", help="hub name, or a file of JSON lines")
    parser.add_argument("--run", default="grpo-1", help="what dashboards and trip wires call this training")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--cpu", action="store_true")
    given = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(given.policy, padding_side="left")
    is_file = given.data.endswith((".json", ".jsonl"))
    prompts = load_dataset("json", data_files=given.data) if is_file else load_dataset(given.data)
    trainer = GRPOTrainer(
        model=given.policy,
        reward_funcs=reward_function(run=given.run, eos_token_id=tokenizer.eos_token_id),
        args=GRPOConfig(
            output_dir=given.run,
            max_steps=given.steps,
            num_generations=8,
            per_device_train_batch_size=8,
            max_completion_length=64,
            logging_steps=1,
            use_cpu=given.cpu,
            bf16=not given.cpu,
            report_to=[],
        ),
        train_dataset=prompts["train"],
        processing_class=tokenizer,
    )
    trainer.train()


if __name__ == "__main__":
    main()

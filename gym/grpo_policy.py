"""Trainer's side of `gym.grpo`: GRPO of TRL with a small policy. Runs in the environment of `make test-trainers`, which has TRL.

Every step is written to the file of the stream as it ends, so a run that is stopped keeps all of them.
"""

from __future__ import annotations

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer

from rewardserve_client import RewardClient
from rewardserve_client.trl import blocking_reward_function

PROMPTS = Path(__file__).with_name("grpo_prompts.txt")
LORA_RANK = 16


def main() -> None:
    """Command-line entry."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--policy", required=True)
    parser.add_argument("--url", required=True)
    parser.add_argument("--run", required=True)
    parser.add_argument("--stream", type=Path, required=True, help="file of JSON lines, gzipped")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--beta", type=float, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    parser.add_argument("--groups", type=int, required=True)
    parser.add_argument("--group", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    given.stream.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(given.policy, padding_side="left")
    prompts = PROMPTS.read_text(encoding="utf-8").splitlines()
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(given.policy, dtype=torch.bfloat16),
        reward_funcs=Recorded(given, tokenizer),
        args=GRPOConfig(
            output_dir=str(given.stream.parent / given.run),
            max_steps=given.steps,
            per_device_train_batch_size=given.groups * given.group,
            num_generations=given.group,
            max_completion_length=given.tokens,
            learning_rate=given.learning_rate,
            lr_scheduler_type="constant",
            beta=given.beta,
            temperature=1.0,
            use_cpu=True,
            bf16=True,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            seed=given.seed,
        ),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in prompts]),
        processing_class=tokenizer,
        peft_config=LoraConfig(
            r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear", task_type="CAUSAL_LM"
        ),
    )
    trainer.train()


class Recorded:
    """The client's reward function, which writes every step to the stream."""

    __name__ = "rewardserve"

    def __init__(self, given: argparse.Namespace, tokenizer: PreTrainedTokenizerFast) -> None:
        ends = [tokenizer.convert_tokens_to_ids("<|im_end|>"), tokenizer.eos_token_id]
        self._reward = blocking_reward_function(RewardClient(given.url), run=given.run, eos_token_id=ends)
        self._stream = given.stream

    def __call__(
        self, prompts: list[Any], completions: list[Any], trainer_state: Any = None, **more: Any
    ) -> list[float | None]:
        """Rewards of a step."""
        rewards = self._reward(prompts=prompts, completions=completions, trainer_state=trainer_state, **more)
        row = {
            "step": trainer_state.global_step,
            "prompts": [turns[-1]["content"] for turns in prompts],
            "responses": [turns[-1]["content"] for turns in completions],
            "rewards": rewards,
        }
        with gzip.open(
            self._stream, "at", encoding="utf-8"
        ) as file:  # members of gzip one after the other are one file
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        return rewards


if __name__ == "__main__":
    main()

"""The loop of commands on real checkpoints: `rewardserve train`, a run, `rewardserve mine`, labels, `train --counterexamples`.

    nice -n 19 python -m gym.command_loop --seeds 20 22

The gym's network is written as a checkpoint of transformers; every reward model is the output of `rewardserve train`, and
policies are trained on what the product's scorer gives to their texts. Prints gold at the end of a run on the first model and
of one on the last, by seed. Minutes a seed: `gym.overoptimisation` does the same with the fit of `proxy` in seconds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Final

import numpy as np

from gym import vocabulary
from gym.checkpoint import MAX_TOKENS, write_network
from gym.counterexamples import AUDITOR, CLIMB, N_ROUNDS, PER_ROUND
from gym.labeller import PLANTED, LabelledPairs, pairs
from gym.mining import finish_reasons, label_queue, run_mine, sample_groups, write_rows
from gym.outcomes import GymRun, paired_difference, record_run
from gym.policy import base_policy
from gym.proxy import MultiModelScorer, backbone
from gym.responses import FloatArray, Responses
from gym.reward_models import N_JUDGE, N_PAIRS
from gym.training import STEPS, Step, train
from rewardserve.model.backends import LoadedModel, ModelSpec, load
from rewardserve.model.conversation import SCORE_EMPTY_OPTIONS, Sample
from rewardserve.model.encoding import Encoded
from rewardserve.model.scorer import TokenBatch
from rewardserve.training.cli import train as train_command
from rewardserve.training.dataset.counterexamples import scores_path

FIRST_PROMPT: Final = 1_000_000
"""Prompts of the labelled pairs; those of runs and of mined responses begin at 0."""


@dataclass(frozen=True)
class ServedModel:
    """Scores of a checkpoint for texts, by the encoder and the scorer that a server has."""

    loaded: LoadedModel

    def scores_B(self, responses: Responses) -> FloatArray:
        """Raw score of every response."""
        rows = zip(responses.prompt_ids_B.tolist(), responses.texts(), finish_reasons(responses), strict=True)
        samples = [
            Sample(
                prompt=vocabulary.prompt(prompt),
                response=text,
                finish_reason=reason,
                options=SCORE_EMPTY_OPTIONS,
            )
            for prompt, text, reason in rows
        ]
        encoded = self.loaded.encode.many(samples)
        ids = [each.ids for each in encoded if isinstance(each, Encoded)]
        if len(ids) < len(samples):
            raise ValueError(f"{len(samples) - len(ids)} responses cannot be encoded")
        found = self.loaded.scorer.score(TokenBatch(tuple(ids)))
        return np.array([row["score"] for row in found.rows])


@dataclass(frozen=True)
class Loop:
    """One seed: its folder, and the sizes of its parts."""

    seed: int
    folder: Path
    rounds: int
    climb: int
    per_round: int
    steps: int
    n_pairs: int

    def run(self) -> tuple[GymRun, GymRun]:
        """Curves of a run on the first model, and of one on the last."""
        base, rng = base_policy(), np.random.default_rng([self.seed, 0])
        labelled = pairs(base, self.n_pairs, PLANTED["human"], rng)
        audited = pairs(base, N_JUDGE, AUDITOR, np.random.default_rng([self.seed, 15]))
        judge = self.train_model("judge", 5, audited)
        queue = self.folder / "all.jsonl"
        checkpoint = first = self.train_model("model-0", 0, labelled)
        for index in range(self.rounds):
            *_, last = self.steps_on(checkpoint, self.climb, 1_000 + 10 * self.seed + index)
            round_rng, folder = np.random.default_rng([self.seed, 11, index]), self.folder / f"round-{index}"
            folder.mkdir()
            responses = sample_groups(last.policy, self.per_round, round_rng)
            mined = run_mine(responses, str(checkpoint), str(judge), self.per_round, folder, "--device=cpu")
            label_queue(mined, AUDITOR, round_rng)
            for whole, part in ((queue, mined), (scores_path(queue), scores_path(mined))):
                with whole.open("a", encoding="utf-8") as file:
                    file.write(part.read_text("utf-8"))
            checkpoint = self.train_model(f"model-{index + 1}", 0, labelled, queue)
        runs = [record_run(self.steps_on(each, self.steps, self.seed)) for each in (first, checkpoint)]
        return runs[0], runs[1]

    def steps_on(self, checkpoint: Path, steps: int, seed: int) -> Iterator[Step]:
        """Steps of a policy on the raw scores of a checkpoint, without KL."""
        loaded = load("torch", ModelSpec(model=str(checkpoint), device="cpu"))
        models = MultiModelScorer({"reward": ServedModel(loaded)})
        yield from train(base_policy(), models, lambda _, scores_BH: scores_BH[:, 0], steps, seed=seed)
        loaded.scorer.close()

    def train_model(self, name: str, network: int, labelled: LabelledPairs, queue: Path | None = None) -> Path:
        """Run `rewardserve train` on these pairs and the counterexamples of a queue. Return the checkpoint."""
        folder = self.folder / name
        folder.mkdir()
        write_network(backbone([self.seed, network + 1]), folder / "sft")
        write_rows(folder / "pairs.jsonl", pair_rows(labelled))
        recipe = {
            "model": {"path": str(folder / "sft"), "head_init": "logistic", "head_l2": [0.1]},
            "method": {"name": "frozen"},
            "optim": {"epochs": 0.0},
            "data": {"sources": [{"path": str(folder / "pairs.jsonl")}]},
            "encoding": {"max_tokens": MAX_TOKENS},
            "eval": {"bootstrap": 20, "invariance_pairs": 0},
            "output": {"folder": str(folder / "out")},
        }
        (folder / "recipe.yaml").write_text(json.dumps(recipe))
        given = [] if queue is None else ["--counterexamples", str(queue)]
        if code := train_command(["--config", str(folder / "recipe.yaml"), *given]):
            raise RuntimeError(f"rewardserve train ended with {code}")
        return folder / "out" / "checkpoint"


def pair_rows(labelled: LabelledPairs) -> list[dict[str, str]]:
    """Preference pairs with a prompt each, without those that training refuses: with an empty response, or two equal ones."""
    left, right = (zip(side.texts(), finish_reasons(side), strict=True) for side in (labelled.left, labelled.right))
    rows = []
    for i, (a, b, won) in enumerate(zip(left, right, labelled.left_won_N.tolist(), strict=True), start=FIRST_PROMPT):
        chosen, rejected = (a, b) if won else (b, a)
        rows.append(
            {
                "prompt": vocabulary.prompt(i),
                "chosen": chosen[0],
                "chosen_finish_reason": chosen[1],
                "rejected": rejected[0],
                "rejected_finish_reason": rejected[1],
            }
        )
    return [row for row in rows if row["chosen"] and row["rejected"] and row["chosen"] != row["rejected"]]


def main() -> None:
    """Run the loop for every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs=2, default=(20, 22), metavar=("FIRST", "END"), help="END is not run")
    parser.add_argument("--rounds", type=int, default=N_ROUNDS)
    parser.add_argument("--climb", type=int, default=CLIMB, help="steps of the run of a round")
    parser.add_argument("--per-round", type=int, default=PER_ROUND, help="labels of a round")
    parser.add_argument("--steps", type=int, default=STEPS, help="steps of the two runs that are compared")
    parser.add_argument("--pairs", type=int, default=N_PAIRS, help="biased pairs of the first model")
    given = parser.parse_args()
    runs = []
    for seed in range(*given.seeds):
        with TemporaryDirectory() as folder:
            loop = Loop(seed, Path(folder), given.rounds, given.climb, given.per_round, given.steps, given.pairs)
            runs.append(loop.run())
        raw, mined = runs[-1]
        print(
            f"seed {seed}: raw {raw.peak:.2f}, at the end {raw.final:.2f}; mined {mined.peak:.2f}, {mined.final:.2f}",
            flush=True,
        )
    raws, mines = zip(*runs, strict=True)
    difference, error = paired_difference(mines, raws)
    print(f"gold at the end: raw {fmean(r.final for r in raws):.2f}, mined {fmean(r.final for r in mines):.2f}, paired "
          f"difference {difference:+.2f} ({error:.2f})")  # fmt: skip


if __name__ == "__main__":
    main()

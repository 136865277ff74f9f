"""One round of the loop of commands: `rewardserve mine` on responses of a policy, a labeller, `train --counterexamples`.

The responses go to the command in a file of JSON lines, through a backend whose models are those of this process; the
labeller reads the queue that it wrote, and fills in verdicts; the reader of `rewardserve train` makes pairs of it. The
fit is that of `proxy`: the gym's network is none of transformers'. Independent of gold.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, Final

import numpy as np

from gym import vocabulary
from gym.labeller import Biases, LabelledPairs, label
from gym.policy import CAP, Policy
from gym.proxy import RewardModel
from gym.responses import Responses, from_rows
from gym.serving import loaded_model
from rewardserve.exit_codes import SOME_FAILED
from rewardserve.mine.command import main as mine
from rewardserve.model.backends import BACKENDS, LoadedModel, LoadError, ModelSpec
from rewardserve.model.calibration import Calibration
from rewardserve.model.conversation import FinishReason
from rewardserve.training.dataset import counterexamples
from rewardserve.training.dataset.data import Split
from rewardserve.training.dataset.feedback import Pair
from rewardserve.training.settings.data_config import CounterexamplesConfig, DataConfig, SourceConfig

GROUP: Final = 8  # responses to a prompt
WEIGHT: Final = CounterexamplesConfig("queue").weight
"""The default of `rewardserve train --counterexamples`."""

BACKEND: Final = "gym-models"
_DATA: Final = DataConfig((SourceConfig("pairs of the gym"),))
_MODELS: dict[str, RewardModel] = {}


def load(spec: ModelSpec) -> LoadedModel:
    """Load a model of this process by name. Raise `LoadError` for another name."""
    if spec.model not in _MODELS:
        raise LoadError(f"{spec.model!r} is none of the models that are mined: {', '.join(_MODELS)}")
    return loaded_model(spec.model, "reward", _MODELS[spec.model], Calibration(mean=0.0, std=1.0, n=0))


def mine_round(
    policy: Policy, model: RewardModel, judge: RewardModel, n_pairs: int, rng: np.random.Generator, folder: Path
) -> Path:
    """Mine the responses of a policy with the command. Return the queue."""
    with _served({"model": model, "judge": judge}):
        return run_mine(sample_groups(policy, n_pairs, rng), "model", "judge", n_pairs, folder, f"--backend={BACKEND}")


def sample_groups(policy: Policy, n_pairs: int, rng: np.random.Generator) -> Responses:
    """Responses to mine: a group to each of two prompts a pair."""
    return policy.sample(rng, np.repeat(np.arange(2 * n_pairs), GROUP))


def run_mine(responses: Responses, model: str, judge: str, n_pairs: int, folder: Path, *options: str) -> Path:
    """Run `rewardserve mine` on these responses. Return the queue. Raise RuntimeError if there is none."""
    samples, queue = folder / "samples.jsonl", folder / "queue.jsonl"
    write_rows(samples, _samples(responses))
    arguments = [model, str(samples), f"--judge={judge}", f"--out={queue}", f"--pairs={n_pairs}", *options]
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        code = mine(arguments)
    if code not in (0, SOME_FAILED) or not queue.exists():  # empty responses are left out
        raise RuntimeError(f"rewardserve mine ended with {code}: {out.getvalue()}{err.getvalue()}")
    return queue


def label_queue(queue: Path, biases: Biases, rng: np.random.Generator) -> None:
    """Fill in the verdicts of a labeller that reads the texts alone."""
    rows = [json.loads(line) for line in queue.read_text("utf-8").splitlines()]
    found = label(read_texts([row["a"] for row in rows]), read_texts([row["b"] for row in rows]), biases, rng)
    verdicts = ["a" if won else "b" for won in found.left_won_N.tolist()]
    write_rows(
        queue, [{**row, "verdict": verdict, "labelled_by": "gym"} for row, verdict in zip(rows, verdicts, strict=True)]
    )


def read_labelled(queue: Path, weight: float = WEIGHT) -> LabelledPairs:
    """The pairs of a labelled queue that `rewardserve train --counterexamples` trains on, with their weight."""
    config = CounterexamplesConfig(str(queue), weight)
    labelled = counterexamples.read(config, _DATA, "reward")
    train = counterexamples.split(labelled, config, _DATA, Split((), (), ())).train
    pairs = [pair for pair in train if isinstance(pair, Pair)]
    chosen, rejected = read_texts([p.chosen_text for p in pairs]), read_texts([p.rejected_text for p in pairs])
    won_N = np.ones(len(pairs), dtype=np.bool_)
    return LabelledPairs(chosen, rejected, won_N, won_N, np.array([pair.weight for pair in pairs]))


def read_texts(texts: Sequence[str]) -> Responses:
    """Responses of texts; one of fewer words than the cap has ended."""
    return from_rows(tuple(vocabulary.read(text) for text in texts), CAP)


def _samples(responses: Responses) -> list[dict[str, Any]]:
    rows = zip(responses.prompt_ids_B.tolist(), responses.texts(), finish_reasons(responses), strict=True)
    return [
        {"prompt": vocabulary.prompt(prompt), "response": text, "finish_reason": reason}
        for prompt, text, reason in rows
    ]


def finish_reasons(responses: Responses) -> list[FinishReason]:
    """Finish reason of every response."""
    return ["stop" if ended else "length" for ended in responses.ended_B.tolist()]


def write_rows(path: Path, rows: Sequence[Any]) -> None:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")


@contextmanager
def _served(models: dict[str, RewardModel]) -> Iterator[None]:
    BACKENDS[BACKEND] = "gym.mining:load"
    _MODELS.update(models)
    try:
        yield
    finally:
        _MODELS.clear()
        del BACKENDS[BACKEND]

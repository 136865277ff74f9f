"""`python -m benchmarks.training --data FILE...`: our trainer and TRL's RewardTrainer on the same pairs.

The same weights (the first layers of SmolLM2 and one head), pairs of each step, optimizer and learning rates, no dropout. One
trainer runs at a time, in a separate process, in rounds. CPU seconds are user and system time of all threads, over all steps
but the first.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import machine, tables
from benchmarks.peers.install import ROOT, environment, same_libraries
from benchmarks.training_ours import config_of
from rewardserve.model.checkpoint import ReadOptions, read_backbone
from rewardserve.training import workflow
from rewardserve.training.batches.pair_batches import PairBatches

TRAINERS = ("ours", "trl")
TRL = "trl==1.16.0"


def main() -> int:
    """Run the comparison. Exit code 1 if the losses differ by more than `--largest-difference`."""
    given = _parser().parse_args()
    python_of = {"ours": Path(sys.executable), "trl": given.trl_python or environment("trl", (TRL, *same_libraries()))}
    facts = {**machine.facts(), "threads": given.threads, "layers": given.layers, "pairs a step": given.batch_pairs,
             "steps": given.steps, "device": _device()}  # fmt: skip
    print(tables.facts(facts), flush=True)
    rows: list[dict[str, str]] = []
    records: dict[str, Any] = {"facts": facts}
    is_equal = True
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "model", given.layers)
        for data in given.data:
            job = write_job(given, Path(folder), model, data.resolve())
            runs: dict[str, list[dict[str, Any]]] = {name: [] for name in TRAINERS}
            for n in range(given.rounds):
                for name in TRAINERS if n % 2 == 0 else TRAINERS[::-1]:
                    runs[name].append(one_run(python_of[name], name, job, given.threads))
                    print(
                        f"round {n + 1}: {data.name}, {name}: {_ms_a_pair(runs[name][-1], given):.0f} CPU ms a pair",
                        flush=True,
                    )
            difference = _largest_difference(runs)
            is_equal &= difference <= given.largest_difference
            records[data.name] = runs
            rows += [_row(data.name, name, runs, given, difference) for name in TRAINERS]
    print("\n" + tables.table(rows))
    if given.json:
        given.json.write_text(json.dumps(records, indent=1) + "\n")
    return 0 if is_equal else 1


def write_model(folder: Path, layers: int) -> Path:
    """Write the first layers of the packaged SmolLM2 and a random head as transformers' reward model. Return the folder."""
    from transformers import LlamaForSequenceClassification

    torch.manual_seed(0)
    start = read_backbone(f"smollm2-135m-instruct:{layers}", ReadOptions())
    network, config = start.network, start.network.config
    config.num_labels, config.pad_token_id = 1, start.pad_id
    model = LlamaForSequenceClassification(config)
    model.model.load_state_dict(network.backbone.state_dict())
    model.score.weight.data.copy_(network.heads.weight.data)
    model.save_pretrained(folder)
    start.tokenizer.save_pretrained(folder)
    return folder


def write_job(given: argparse.Namespace, folder: Path, model: Path, data: Path) -> Path:
    """Write the settings of both trainers, and for TRL the tokens of the pairs in the order in which ours takes them."""
    job = {
        "model": str(model), "data": str(data), "folder": str(folder), "pairs": str(folder / "pairs.json"), "device": _device(),
        "lr": given.lr, "optimizer": given.optimizer, "batch_pairs": given.batch_pairs, "steps": given.steps,
        "gradient_checkpointing": given.gradient_checkpointing,
    }  # fmt: skip
    config = config_of(job)
    table = workflow.encode(config, workflow.load_start(config)).train
    batches = islice(PairBatches(table, config.optim, seed=config.seed), given.steps)
    ids = [s.ids for s in table.sequences]
    (folder / "pairs.json").write_text(json.dumps([[ids[s] for s in table.rows[n]] for b in batches for n in b]))
    path = folder / "job.json"
    path.write_text(json.dumps(job))
    return path


def one_run(python: Path, name: str, job: Path, threads: int) -> dict[str, Any]:
    """Train once in a new process. Return its record."""
    env = {**machine.environment(threads, malloc=False), "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [str(python), "-m", f"benchmarks.training_{name}", str(job)],
        env=env,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    record: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return record


def _row(
    data: str, name: str, runs: dict[str, list[dict[str, Any]]], given: argparse.Namespace, difference: float
) -> dict[str, str]:
    own = runs[name]
    peak = "peak_cuda" if _device() == "cuda" else "peak_rss"
    cpu = {each: median(_ms_a_pair(run, given) for run in runs[each]) for each in TRAINERS}
    return {
        "data": data,
        "trainer": name,
        "CPU ms a pair": f"{cpu[name]:.0f}",
        "of TRL": f"{cpu[name] / cpu['trl']:.2f}",
        "wall ms a pair": f"{median(_ms_a_pair(run, given, 'wall_s') for run in own):.0f}",
        "peak MB": f"{median(run[peak] for run in own) / 1e6:.0f}",
        "largest difference of a loss": f"{difference:.1e}",
    }


def _ms_a_pair(run: dict[str, Any], given: argparse.Namespace, clock: str = "cpu_s") -> float:
    return float(1000 * run[clock] / (run["counted_steps"] * given.batch_pairs))


def _largest_difference(runs: dict[str, list[dict[str, Any]]]) -> float:
    curves: Sequence[tuple[list[float], list[float]]] = [
        (a["losses"], b["losses"]) for a, b in zip(runs["ours"], runs["trl"], strict=True)
    ]
    return max(abs(a - b) for ours, trl in curves for a, b in zip(ours, trl, strict=True))


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training", description="Train beside TRL's RewardTrainer."
    )
    parser.add_argument("--data", type=Path, nargs="+", required=True, help="files of preference pairs")
    parser.add_argument("--layers", type=int, default=4, help="first layers of SmolLM2, of 30")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-pairs", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--optimizer", default="adamw_torch_fused", help="of both; its name in transformers")
    parser.add_argument("--gradient-checkpointing", action="store_true", help="in both trainers; TRL's default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--largest-difference", type=float, default=1e-4, help="between the losses of a step")
    parser.add_argument("--trl-python", type=Path, help="Python of an environment with TRL; default: made in .bench/")
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())

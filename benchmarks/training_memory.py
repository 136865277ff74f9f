"""Peak memory of a training by its number of pairs: with the items in memory, and with `data.on_disk`.

    python -m benchmarks.training_memory --pairs 100000,400000 --most 0.1

Each run is a separate process: a tiny model trains some steps on pairs of random words, no two alike, judged on 200 others. Its
peak is the largest resident set that the kernel has noted. Exit code 1 if the peak with `data.on_disk` grows by more than the share
`--most` from the fewest pairs to the most, or if the losses of both ways differ.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

_WORDS = [f"w{i}" for i in range(2000)]
_TEMPLATE = "{% for m in messages %}<s>{{ m['role'] }} {{ m['content'] }}</s>{% endfor %}"


@dataclass(frozen=True, slots=True)
class Peak:
    """One run: its pairs, where its items were, its peak memory, its time and its losses."""

    n_pairs: int
    on_disk: bool
    peak_mb: float
    minutes: float
    losses: tuple[float, ...]


def main() -> int:
    """Print a table in Markdown. Exit code 1 where memory grows."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--pairs", default="100000,400000", help="numbers of pairs, with commas")
    parser.add_argument("--words", type=int, default=60, help="words of a response")
    parser.add_argument("--steps", type=int, default=10, help="optimizer steps of a run")
    parser.add_argument("--in-memory", default="", help="numbers of pairs that are also trained on in memory")
    parser.add_argument("--most", type=float, default=0.1, help="limit of the growth, as a share of the lowest peak")
    parser.add_argument("--json", type=Path, help="also write the runs to this file")
    given = parser.parse_args()
    numbers = sorted(int(n) for n in given.pairs.split(","))
    in_memory = [int(n) for n in given.in_memory.split(",") if n]
    found: list[Peak] = []
    with TemporaryDirectory() as folder:
        _write_model(Path(folder) / "model")
        _write_pairs(Path(folder) / "held_out.jsonl", 200, given.words, seed=1)
        print("| pairs | items | peak, MB | minutes |\n|---|---|---|---|")
        for n in numbers:
            _write_pairs(Path(folder) / "pairs.jsonl", n, given.words, seed=0)
            for on_disk in (True, False) if n in in_memory else (True,):
                found.append(_measure(Path(folder), n, given.steps, on_disk=on_disk))
                run = found[-1]
                where = "on disk" if on_disk else "in memory"
                print(f"| {n:,} | {where} | {run.peak_mb:,.0f} | {run.minutes:.1f} |", flush=True)
    if given.json:
        given.json.write_text(json.dumps([asdict(run) for run in found], indent=1) + "\n")
    peaks = [run.peak_mb for run in found if run.on_disk]
    growth = peaks[-1] / peaks[0] - 1
    equal = all(len({run.losses for run in found if run.n_pairs == n}) == 1 for n in numbers)
    print(f"growth on disk: {growth:+.1%}; losses {'equal' if equal else 'DIFFER'}")
    return int(growth > given.most or not equal)


def _measure(folder: Path, n_pairs: int, steps: int, *, on_disk: bool) -> Peak:
    out = folder / f"run-{n_pairs}-{on_disk}"
    recipe = {
        "model": {"path": str(folder / "model")},
        "data": {
            "sources": [{"path": str(folder / "pairs.jsonl")}],
            "eval_sources": [{"path": str(folder / "held_out.jsonl")}],
            "on_disk": on_disk,
        },
        "encoding": {"max_tokens": 256},
        "optim": {"max_steps": steps, "batch_pairs": 8, "accumulate": 2},
        "eval": {"bootstrap": 20, "invariance_pairs": 0},
        "output": {"folder": str(out), "log_steps": 1, "report_to": []},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    began = time.monotonic()
    run = subprocess.Popen(
        [sys.executable, "-m", "rewardserve", "train", "--config", str(folder / "recipe.yaml")],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    _, status, usage = os.wait4(run.pid, 0)
    if status:
        raise SystemExit(f"the run over {n_pairs:,} pairs ended with status {status}")
    state = next((out / "steps").glob("checkpoint-*/trainer_state.json"))
    losses = tuple(line["loss"] for line in json.loads(state.read_text())["log_history"] if "loss" in line)
    return Peak(n_pairs, on_disk, usage.ru_maxrss * 1024 / 1e6, (time.monotonic() - began) / 60, losses)


def _write_pairs(path: Path, n: int, n_words: int, *, seed: int) -> None:
    with path.open("w") as file:
        for row in _pairs(n, n_words, random.Random(seed)):
            file.write(json.dumps(row) + "\n")


def _pairs(n: int, n_words: int, rng: random.Random) -> Iterator[dict[str, str]]:
    for _ in range(n):
        yield {name: " ".join(rng.choices(_WORDS, k=n_words)) for name in ("prompt", "chosen", "rejected")}


def _write_model(folder: Path, special: Sequence[str] = ("<s>", "</s>", "<pad>")) -> None:
    vocabulary = {word: i for i, word in enumerate([*special, "<unk>", "user", "assistant", *_WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>",
        chat_template=_TEMPLATE,
    )  # fmt: skip
    shape = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    LlamaForCausalLM(shape).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    sys.exit(main())

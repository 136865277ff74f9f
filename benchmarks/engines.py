"""Compare engines on the same token ids: CPU seconds, wall time, ratio to naive, share of the GEMM peak, error.

One process, no HTTP, no tokenising. Each round runs every engine once on every workload and measures the machine's
matrix products beside it; figures are medians over the rounds, ratios are taken within a round. `benchmarks.peers`
measures whole servers.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from benchmarks import machine, models, tables, workloads
from benchmarks.machine import Cost, measure_cost

if TYPE_CHECKING:
    from benchmarks.batch_forming import Row
    from benchmarks.engines_under_test import EngineUnderTest

T = TypeVar("T")

# Share of a workload's full size in a full run, so that it ends within ten minutes on two cores.
SCALES = {"m30": 0.125, "m150": 0.0625}
SMALLER = {("m150", "grpo"): 0.03125}
QUICK_SCALE = 0.03125
WORKLOADS = ("ragged", "grpo", "duplicates", "long")
ENGINES = ("naive", "sorted", "packed", "shared")
BASE = "naive"
N_REFERENCE = 24
_PEAK_TOKENS, _PEAK_LAYERS, _PEAK_REPEATS = 1024, 2, 3


@dataclass(frozen=True, slots=True)
class Round:
    """One engine, one workload, one round; `peak` is the rate of matrix products just before, in FLOP a CPU second."""

    cost: Cost
    base: Cost
    peak: float


@dataclass(frozen=True, slots=True)
class EngineFigures:
    """Reported figures of an engine on a workload. Tokens are those of the unshared rows, without padding."""

    model: str
    workload: str
    engine: str
    rows: int
    tokens: int
    tokens_per_cpu_s: float
    tokens_per_wall_s: float
    cpu_s: float
    cpu_ratio: float
    wall_ratio: float
    of_peak: float
    max_error: float


def main() -> int:
    """Command-line entry."""
    given = _parser().parse_args()
    machine.run_again_with(given.threads, malloc=not given.no_malloc)
    if given.quick:
        given.models, given.rounds, given.scale = ["m30"], 1, given.scale or QUICK_SCALE
        given.workloads = [kind for kind in given.workloads if kind != "long"]
    facts = machine.facts()
    print(tables.facts(facts), flush=True)
    figures: list[EngineFigures] = []
    for name in given.models:
        figures += model_figures(name, given)
        print("\n" + tables.table([_shown(f) for f in figures if f.model == name]), flush=True)
    if given.json:
        record = {"facts": facts, "rounds": given.rounds, "figures": [asdict(f) for f in figures]}
        given.json.write_text(json.dumps(record, indent=1) + "\n")
    return 0


def model_figures(name: str, given: argparse.Namespace) -> Iterator[EngineFigures]:
    """Measure all engines on all workloads with one model."""
    from benchmarks.engines_under_test import ENGINE_BUILDERS, LoadedCheckpoint

    folder = models.folder(name)
    loaded, encode, peak = LoadedCheckpoint(folder), workloads.encoder_of(folder), gemm(models.MODELS[name])
    engines = [ENGINE_BUILDERS[engine](loaded, given.budget) for engine in given.engines]
    tokenizer = workloads.tokenizer_of(folder)
    for kind in given.workloads:
        work = workloads.make(kind, tokenizer, given.scale or SMALLER.get((name, kind), SCALES[name]), given.seed)
        rows = [encode(pair.sample()).ids for pair in work.pairs]
        rounds, scores = measure(engines, rows, given.rounds, peak)
        reference = {i: loaded.alone(rows[i]) for i in machine.spread(len(rows), N_REFERENCE)}
        for engine in rounds:
            error = max(abs(scores[engine][i] - score) for i, score in reference.items())
            yield figures_of(name, kind, engine, [len(row) for row in rows], rounds[engine], error)


def measure(
    engines: Sequence[EngineUnderTest], rows: Sequence[Row], n_rounds: int, peak: Callable[[], float]
) -> tuple[dict[str, list[Round]], dict[str, list[float]]]:
    """Rounds and scores by engine. Each round begins with another engine."""
    rounds: dict[str, list[Round]] = {engine.name: [] for engine in engines}
    scores: dict[str, list[float]] = {}
    for engine in engines:
        engine.run(rows[:2])  # the first forward is slower: memory, threads, kernels
    for n in range(n_rounds):
        peaks: dict[str, float] = {}
        costs: dict[str, Cost] = {}
        for engine in rotated(engines, n):
            peaks[engine.name] = peak()
            scores[engine.name], costs[engine.name] = measure_cost(partial(engine.run, rows))
        base = costs.get(BASE, costs[engines[0].name])
        for name, cost in costs.items():
            rounds[name].append(Round(cost, base, peaks[name]))
    return rounds, scores


def rotated(items: Sequence[T], n: int) -> list[T]:
    """Rotate so that the n-th item comes first."""
    n %= len(items)
    return [*items[n:], *items[:n]]


def figures_of(
    model: str, workload: str, engine: str, lengths: Sequence[int], rounds: Sequence[Round], error: float
) -> EngineFigures:
    """Medians over the rounds of figures that are defined within a round."""
    n_tokens = sum(lengths)
    flops = sum(map(models.MODELS[model].flops, lengths))
    return EngineFigures(
        model=model,
        workload=workload,
        engine=engine,
        rows=len(lengths),
        tokens=n_tokens,
        tokens_per_cpu_s=statistics.median(n_tokens / r.cost.cpu_s for r in rounds),
        tokens_per_wall_s=statistics.median(n_tokens / r.cost.wall_s for r in rounds),
        cpu_s=statistics.median(r.cost.cpu_s for r in rounds),
        cpu_ratio=statistics.median(r.base.cpu_s / r.cost.cpu_s for r in rounds),
        wall_ratio=statistics.median(r.base.wall_s / r.cost.wall_s for r in rounds),
        of_peak=statistics.median(flops / r.cost.cpu_s / r.peak for r in rounds),
        max_error=error,
    )


def gemm(shape: models.DecoderShape) -> Callable[[], float]:
    """Build a function that measures the peak at the shapes of one layer: useful FLOP a CPU second, the best of several."""
    import torch
    from torch.nn.functional import linear

    inputs = {n: torch.randn(_PEAK_TOKENS, n) for n in {a for a, _ in shape.products()}}
    matrices = [(inputs[a], torch.randn(b, a)) for a, b in shape.products()]
    flops = 2.0 * _PEAK_TOKENS * sum(a * b for a, b in shape.products())

    def layers() -> None:
        for _ in range(_PEAK_LAYERS):
            for x, matrix in matrices:
                linear(x, matrix)

    def best() -> float:
        return max(_PEAK_LAYERS * flops / measure_cost(layers)[1].cpu_s for _ in range(_PEAK_REPEATS))

    return best


def _shown(f: EngineFigures) -> dict[str, str]:
    return {
        "model": f.model,
        "workload": f"{f.workload} ({f.rows} rows, {f.tokens} tokens)",
        "engine": f.engine,
        "CPU s": f"{f.cpu_s:.2f}",
        "tokens/CPU s": f"{f.tokens_per_cpu_s:.0f}",
        "tokens/wall s": f"{f.tokens_per_wall_s:.0f}",
        "CPU ratio": f"{f.cpu_ratio:.2f}",
        "wall ratio": f"{f.wall_ratio:.2f}",
        "of peak": f"{100 * f.of_peak:.0f} %",
        "max error": f"{f.max_error:.1e}",
    }


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.engines", description="Compare engines on the same token ids."
    )
    parser.add_argument("--models", nargs="+", choices=models.MODELS, default=list(models.MODELS))
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument(
        "--engines", nargs="+", default=list(ENGINES), help="see benchmarks/engines_under_test.py for more"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, help=f"share of the full size; default {SCALES}")
    parser.add_argument("--budget", type=int, default=1024, help="tokens a batch of RewardServe's engines")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--quick", action="store_true", help="one small round of the small model, no long rows; under a minute"
    )
    parser.add_argument("--no-malloc", action="store_true", help="keep the default settings of glibc's allocator")
    parser.add_argument("--json", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())

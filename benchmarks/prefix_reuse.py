"""Measure the prefix cache: the gain of keeping the keys and values of prompts that return with new responses in later batches.

Every group of the grpo workload is split into halves, and the second halves come after all first ones. Two engines, one
with a prefix cache and one without, score both halves batch by batch, interleaved; the figures are CPU seconds of the
second half.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from functools import partial

from benchmarks import machine, models, tables, workloads
from benchmarks.machine import measure_cost

HALF = workloads.GROUP_SIZE // 2
Row = tuple[int, ...]


def main() -> int:
    """Command-line entry."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.prefix_reuse", description="Measure the prefix cache.")
    parser.add_argument("--models", nargs="+", choices=models.MODELS, default=["m30"])
    parser.add_argument("--mib", nargs="+", type=int, default=[0, 64, 256], help="MiB of cached keys and values")
    parser.add_argument("--scale", type=float, default=0.25)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    machine.run_again_with(given.threads, malloc=True)
    print(tables.facts(machine.facts()), flush=True)
    for name in given.models:
        print("\n" + tables.table(_compare(name, given)), flush=True)
    return 0


def _compare(name: str, given: argparse.Namespace) -> list[dict[str, str]]:
    first, second = _halves(name, given.scale)
    cpu_s: dict[int, list[tuple[float, float]]] = {mib: [] for mib in given.mib}
    for n in range(given.rounds):
        for mib in [*given.mib[n % len(given.mib) :], *given.mib[: n % len(given.mib)]]:
            cpu_s[mib].append(_passes(name, mib, first, second))
    base = [statistics.median(x) for x in zip(*cpu_s[given.mib[0]], strict=True)]
    rows = []
    for mib, rounds in cpu_s.items():
        before, after = (statistics.median(x) for x in zip(*rounds, strict=True))
        rows.append(
            {"model": name, "MiB": str(mib), "prompts": str(len(first)), "first pass, CPU s": f"{before:.2f}",
             "ratio": f"{base[0] / before:.2f}", "second pass, CPU s": f"{after:.2f}", "ratio ": f"{base[1] / after:.2f}"}
        )  # fmt: skip
    return rows


def _halves(name: str, scale: float) -> tuple[list[list[Row]], list[list[Row]]]:
    folder = models.folder(name)
    encode = workloads.encoder_of(folder)
    work = workloads.make("grpo", workloads.tokenizer_of(folder), scale)
    groups = [[encode(pair.sample()).ids for pair in request] for request in work.requests]
    return [group[:HALF] for group in groups], [group[HALF:] for group in groups]


def _passes(name: str, mib: int, first: Sequence[list[Row]], second: Sequence[list[Row]]) -> tuple[float, float]:
    """CPU seconds of either pass, a group a batch, with a fresh engine."""
    from benchmarks.engines_under_test import LoadedCheckpoint, ours

    engine = ours(
        LoadedCheckpoint(models.folder(name)),
        0,
        name="ours",
        share=True,
        matmul_precision="high",
        prefix_cache_bytes=mib * 2**20,
    )

    def score_all(groups: Sequence[list[Row]]) -> None:
        for group in groups:
            engine.score(group)

    score_all([[(5, 6, 7)]])  # the first forward is slower
    before, after = (measure_cost(partial(score_all, groups))[1].cpu_s for groups in (first, second))
    return before, after


if __name__ == "__main__":
    sys.exit(main())

"""Hot-swap test: one model after the other in a real server under load; every reply must come from the model that it names.

Starts `python -m rewardserve serve` on a free port of the loopback, lets clients score without pause, and swaps models
through `POST /admin/models`, one after the other, A, B, A, ... Before, each model alone scores every text as the
reference. A reply must name a version and hold the scores of the model of that version. Prints the latency of clients
with and without a model being loaded, and the memory after each swap; exit code 1 if a request failed or a version was
wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx

from benchmarks.tables import report
from benchmarks.texts import samples
from rewardserve.bench.server_process import ServerProcess

Raws = list[float | None]

SAME_SCORE = 2e-3  # float32 kernels differ a little with the shape of the batch


@dataclass
class SwapRecord:
    """Observations of the clients. `at`: time of each reply, whether a model was being loaded, and the latency."""

    at: list[tuple[float, bool, float]] = field(default_factory=list)
    versions: dict[int, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    is_loading: bool = False
    is_over: bool = False


def main() -> int:
    """Run the hot-swap test. Exit code 1 if a check failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="", help="model A; default: the default model")
    parser.add_argument("--other", default="", help="model B; default: A again")
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--texts", type=int, default=200, help="number of different samples")
    parser.add_argument("--rest", type=float, default=2.0, help="seconds between two swaps")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    figures = asyncio.run(run(given))
    return report(figures, given.json)


async def run(given: argparse.Namespace) -> dict[str, Any]:
    """Run one measurement."""
    first = given.model or "default"  # the name of the embedded model in `POST /admin/models`
    pool, models = samples(None, given.texts), (first, given.other or first)
    flags = ["--backend=torch", "--cache.scores=0", *([f"{given.model}"] if given.model else [])]
    with ServerProcess("--log-level=warning", *flags, log=sys.stderr.buffer) as server:
        limits = httpx.Limits(max_connections=given.clients + 4)
        async with httpx.AsyncClient(base_url=server.url, timeout=600, limits=limits) as http:
            references = await _reference_scores(http, pool, models)
            record, rss, loads = SwapRecord(), [server.rss_mib()], list[float]()
            clients = [
                asyncio.create_task(_client(http, pool, references, i, record, given.swaps))
                for i in range(given.clients)
            ]
            began = time.monotonic()
            for i in range(given.swaps):
                await asyncio.sleep(given.rest)
                loads.append(await _swap(http, models[(i + 1) % 2], record))
                rss.append(server.rss_mib())
            await asyncio.sleep(given.rest)
            record.is_over = True
            await asyncio.gather(*clients)
            wall = time.monotonic() - began
        exit_code = await asyncio.to_thread(server.end)
    return _figures(record, loads, rss, wall, exit_code)


async def _reference_scores(
    http: httpx.AsyncClient, pool: list[dict[str, Any]], models: tuple[str, str]
) -> tuple[Raws, Raws]:
    """Scores of every text by each of the models, without other load. Afterwards A is loaded, under an even version."""
    found = []
    for model in (models[1], models[0]):
        (await http.post("/admin/models", json={"model": model})).raise_for_status()
        answers = [await http.post("/score", json={"samples": pool[i : i + 50]}) for i in range(0, len(pool), 50)]
        found.append([result["raw"] for answer in answers for result in answer.json()["results"]])
    return found[1], found[0]


async def _swap(http: httpx.AsyncClient, model: str, record: SwapRecord) -> float:
    record.is_loading, began = True, time.monotonic()
    answer = await http.post("/admin/models", json={"model": model})
    record.is_loading = False
    if answer.status_code != 200:
        record.wrong.append(f"a swap was refused: {answer.text}")
    return time.monotonic() - began


async def _client(
    http: httpx.AsyncClient,
    pool: list[dict[str, Any]],
    references: tuple[Raws, Raws],
    seed: int,
    record: SwapRecord,
    n_swaps: int,
) -> None:
    rng = random.Random(seed)
    while not record.is_over:
        picks = [rng.randrange(len(pool)) for _ in range(rng.randint(1, 4))]
        began, was_loading = time.monotonic(), record.is_loading
        answer = await http.post("/score", json={"run": "swap", "samples": [pool[pick] for pick in picks]})
        now = time.monotonic()
        record.at.append((now, was_loading or record.is_loading, now - began))
        if answer.status_code != 200:
            record.wrong.append(answer.text)
            continue
        reply = answer.json()
        version = reply["model_version"]
        record.versions[version] = record.versions.get(version, 0) + 1
        if not 3 <= version <= 3 + n_swaps:
            record.wrong.append(f"version {version}")
        reference = references[(version - 3) % 2]
        for pick, result in zip(picks, reply["results"], strict=True):
            if not _same(result["raw"], reference[pick]):
                record.wrong.append(f"text {pick} by version {version}: {result['raw']}, not {reference[pick]}")


def _same(raw: float | None, reference: float | None) -> bool:
    """Whether two scores agree. A text that a model cannot read has no score with either."""
    return raw == reference if raw is None or reference is None else abs(raw - reference) <= SAME_SCORE


def _figures(record: SwapRecord, loads: list[float], rss: list[float], wall: float, exit_code: int) -> dict[str, Any]:
    times = sorted(at for at, _, _ in record.at)
    gaps = [b - a for a, b in pairwise(times)]
    calm, busy = ([s for _, loading, s in record.at if loading is which] for which in (False, True))
    return {
        "swaps": len(loads),
        "requests": len(record.at),
        "requests_per_s": round(len(record.at) / wall, 1),
        "versions_served": len(record.versions),
        "load_s_median_max": [round(statistics.median(loads), 2), round(max(loads), 2)],
        "latency_s_p50_p99_max": _quantiles(calm),
        "latency_s_while_loading": _quantiles(busy),
        "longest_without_an_answer_s": round(max(gaps), 3),
        "rss_mib": [round(mib, 1) for mib in (rss[0], *rss[1 :: max(1, len(rss) // 6)], rss[-1])],
        "wrong": record.wrong[:5] + [f"the server ended with exit code {exit_code}"] * bool(exit_code),
    }


def _quantiles(seconds: list[float]) -> list[float]:
    ordered = sorted(seconds) or [0.0]
    return [round(ordered[int(q * (len(ordered) - 1))], 3) for q in (0.5, 0.99, 1.0)]


if __name__ == "__main__":
    sys.exit(main())

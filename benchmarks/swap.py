"""One model after the other in a real server under load: is every request answered, by the model that it names?

Starts `python -m rewardserve serve` on a free port of the loopback, lets clients score without pause, and swaps models through
`POST /admin/models`, one after the other, A, B, A, ... Before, each model is asked alone what it scores every text. A
reply must name a version, and hold the scores of the model of that version. Prints what callers see while a model is
loaded beside and while none is, and the memory after each swap; exit code 1 if a request failed or a version was wrong.
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

from benchmarks.server_process import ServerProcess
from benchmarks.tables import report
from benchmarks.texts import samples

Raws = list[float | None]

SAME_SCORE = 2e-3  # float32 kernels differ a little with the shape of the batch


@dataclass
class SwapRecord:
    """What the clients saw. `at`: when each answer came, whether a model was being loaded, and how long it took."""

    at: list[tuple[float, bool, float]] = field(default_factory=list)
    versions: dict[int, int] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)
    is_loading: bool = False
    is_over: bool = False


def main() -> int:
    """Command-line entry. Exit code 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="", help="A; default: the default model")
    parser.add_argument("--other", default="", help="B; default: A once more")
    parser.add_argument("--swaps", type=int, default=20)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--texts", type=int, default=200, help="how many different samples")
    parser.add_argument("--rest", type=float, default=2.0, help="seconds between two swaps")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    figures = asyncio.run(run(given))
    return report(figures, given.json)


async def run(given: argparse.Namespace) -> dict[str, Any]:
    """One whole measurement."""
    pool, models = samples(None, given.texts), (given.model, given.other or given.model)
    flags = ["--backend=torch", "--cache.scores=0", *([f"{given.model}"] if given.model else [])]
    with ServerProcess(*flags, aloud=True) as server:
        limits = httpx.Limits(max_connections=given.clients + 4)
        async with httpx.AsyncClient(base_url=server.url, timeout=600, limits=limits) as http:
            truths = await _reference_scores(http, pool, models)
            seen, rss, loads = SwapRecord(), [server.rss_mib()], list[float]()
            clients = [
                asyncio.create_task(_client(http, pool, truths, i, seen, given.swaps)) for i in range(given.clients)
            ]
            began = time.monotonic()
            for i in range(given.swaps):
                await asyncio.sleep(given.rest)
                loads.append(await _swap(http, models[(i + 1) % 2], seen))
                rss.append(server.rss_mib())
            await asyncio.sleep(given.rest)
            seen.is_over = True
            await asyncio.gather(*clients)
            wall = time.monotonic() - began
        exit_code = await asyncio.to_thread(server.end)
    return _figures(seen, loads, rss, wall, exit_code)


async def _reference_scores(
    http: httpx.AsyncClient, pool: list[dict[str, Any]], models: tuple[str, str]
) -> tuple[Raws, Raws]:
    """What each of the models says of every text, nobody else asking. Afterwards A serves, under an even version."""
    found = []
    for model in (models[1], models[0]):
        (await http.post("/admin/models", json={"model": model})).raise_for_status()
        answers = [await http.post("/score", json={"samples": pool[i : i + 50]}) for i in range(0, len(pool), 50)]
        found.append([result["raw"] for answer in answers for result in answer.json()["results"]])
    return found[1], found[0]


async def _swap(http: httpx.AsyncClient, model: str, seen: SwapRecord) -> float:
    seen.is_loading, began = True, time.monotonic()
    answer = await http.post("/admin/models", json={"model": model})
    seen.is_loading = False
    if answer.status_code != 200:
        seen.wrong.append(f"a swap was refused: {answer.text}")
    return time.monotonic() - began


async def _client(
    http: httpx.AsyncClient,
    pool: list[dict[str, Any]],
    truths: tuple[Raws, Raws],
    seed: int,
    seen: SwapRecord,
    n_swaps: int,
) -> None:
    rng = random.Random(seed)
    while not seen.is_over:
        picks = [rng.randrange(len(pool)) for _ in range(rng.randint(1, 4))]
        began, was_loading = time.monotonic(), seen.is_loading
        answer = await http.post("/score", json={"run": "swap", "samples": [pool[pick] for pick in picks]})
        now = time.monotonic()
        seen.at.append((now, was_loading or seen.is_loading, now - began))
        if answer.status_code != 200:
            seen.wrong.append(answer.text)
            continue
        said = answer.json()
        version = said["model_version"]
        seen.versions[version] = seen.versions.get(version, 0) + 1
        if not 3 <= version <= 3 + n_swaps:
            seen.wrong.append(f"version {version}")
        truth = truths[(version - 3) % 2]
        for pick, result in zip(picks, said["results"], strict=True):
            if not _same(result["raw"], truth[pick]):
                seen.wrong.append(f"text {pick} by version {version}: {result['raw']}, not {truth[pick]}")


def _same(raw: float | None, truth: float | None) -> bool:
    """A text that a model cannot read has no score, with either."""
    return raw == truth if raw is None or truth is None else abs(raw - truth) <= SAME_SCORE


def _figures(seen: SwapRecord, loads: list[float], rss: list[float], wall: float, exit_code: int) -> dict[str, Any]:
    times = sorted(at for at, _, _ in seen.at)
    gaps = [b - a for a, b in pairwise(times)]
    calm, busy = ([s for _, loading, s in seen.at if loading is which] for which in (False, True))
    return {
        "swaps": len(loads),
        "requests": len(seen.at),
        "requests_per_s": round(len(seen.at) / wall, 1),
        "versions_that_answered": len(seen.versions),
        "load_s_median_max": [round(statistics.median(loads), 2), round(max(loads), 2)],
        "latency_s_p50_p99_max": _quantiles(calm),
        "latency_s_while_loading": _quantiles(busy),
        "longest_without_an_answer_s": round(max(gaps), 3),
        "rss_mib": [round(mib, 1) for mib in (rss[0], *rss[1 :: max(1, len(rss) // 6)], rss[-1])],
        "wrong": seen.wrong[:5] + [f"it ended with {exit_code}"] * bool(exit_code),
    }


def _quantiles(seconds: list[float]) -> list[float]:
    ordered = sorted(seconds) or [0.0]
    return [round(ordered[int(q * (len(ordered) - 1))], 3) for q in (0.5, 0.99, 1.0)]


if __name__ == "__main__":
    sys.exit(main())

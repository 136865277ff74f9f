"""Load test of a real server with 32 concurrent clients: every request gets a reply in order, and memory stays flat.

Starts `python -m rewardserve serve` on a free port of the loopback interface, sends ragged requests for a while, checks
every reply (ids, order, the same text always the same reward) and samples the server's memory. Then it sends SIGTERM
under load and checks that every accepted request gets a reply and the exit code is 0. Prints a table and, with --json,
writes the figures.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from benchmarks.tables import report
from benchmarks.texts import samples
from rewardserve.bench.closed_loop import HttpOutcome, closed_loop, http_client, send
from rewardserve.bench.server_process import ServerProcess

SAME_REWARD = 2e-3  # float32 kernels differ a little with the shape of the batch


@dataclass
class ClientCounts:
    """Counts and faults seen by the clients."""

    latencies_s: list[float] = field(default_factory=list)
    n_samples: int = 0
    n_refused: int = 0
    n_closed: int = 0  # connections refused after SIGTERM
    n_cut_off: int = 0  # accepted requests without a reply: must stay 0
    wrong: list[str] = field(default_factory=list)
    first_reward: dict[int, float] = field(default_factory=dict)
    worst_difference: float = 0.0


def main() -> int:
    """Run the load test. Exit code 1 if a check failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument(
        "--data", type=Path, help="folder with preference files (.jsonl, .jsonl.gz); default: the pages of this project"
    )
    parser.add_argument("--texts", type=int, default=2000, help="number of different samples")
    parser.add_argument("--largest", type=int, default=8, help="samples in the largest request")
    parser.add_argument("--model", default="")
    parser.add_argument("--backend", default="torch")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    figures = asyncio.run(run(given))
    return report(figures, given.json)


async def run(given: argparse.Namespace) -> dict[str, Any]:
    """Run one measurement."""
    pool = samples(given.data, given.texts)
    model = given.model or ("echo" if given.backend == "echo" else "")
    with ServerProcess(
        "--log-level=warning", f"--backend={given.backend}", *([f"{model}"] if model else []), log=sys.stderr.buffer
    ) as server:
        counts, rss = ClientCounts(), [server.rss_mib()]
        requests = _Requests(pool, given.largest, random.Random(0))
        async with http_client(given.clients + 4, use_proxy=False) as http:
            clients = asyncio.create_task(
                closed_loop(
                    http,
                    f"{server.url}/score",
                    requests,
                    given.clients,
                    lambda number, outcome: _count(requests.picks[number], outcome, counts),
                    until=time.perf_counter() + given.seconds,
                )
            )
            watch = asyncio.create_task(_sample_rss(server, rss))
            started, cpu = time.monotonic(), server.cpu_s()
            await asyncio.sleep(given.seconds)
            cpu, wall = server.cpu_s() - cpu, time.monotonic() - started
            await clients
            watch.cancel()
            counted = (await http.get(f"{server.url}/metrics")).text
        drained = await _terminate_under_load(server, pool, given)
    return {
        "requests": len(counts.latencies_s),
        "samples": counts.n_samples,
        "samples_per_s": round(counts.n_samples / wall, 2),
        "samples_per_cpu_s": round(counts.n_samples / cpu, 2),
        "latency_p50_s": round(statistics.median(counts.latencies_s), 3),
        "latency_p99_s": round(sorted(counts.latencies_s)[int(0.99 * len(counts.latencies_s))], 3),
        "refused": counts.n_refused,
        "worst_same_text_difference": counts.worst_difference,
        "rss_mib_start_middle_end": [round(rss[i], 1) for i in (0, len(rss) // 2, -1)],
        "tokens": {
            k: _metric(counted, f'rewardserve_tokens_total{{kind="{k}"}}') for k in ("received", "computed", "padding")
        },
        "sigterm": drained,
        "wrong": counts.wrong[:5] + drained.pop("wrong"),
    }


class _Requests:
    """Endless bodies of `POST /score`. `picks` has the numbers of the samples of each."""

    def __init__(self, pool: list[dict[str, Any]], largest: int, rng: random.Random) -> None:
        self._pool, self._largest, self._rng = pool, largest, rng
        self.picks: list[list[int]] = []

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> bytes:
        """One more."""
        picks = [self._rng.randrange(len(self._pool)) for _ in range(self._rng.randint(1, self._largest))]
        self.picks.append(picks)
        return _body(self._pool, picks)


def _count(picks: list[int], outcome: HttpOutcome, counts: ClientCounts) -> None:
    if outcome.status == 503:
        counts.n_refused += 1
        return
    counts.latencies_s.append(outcome.latency_s)
    counts.n_samples += len(picks)
    _check(outcome, picks, counts)


def _body(pool: list[dict[str, Any]], picks: list[int]) -> bytes:
    samples = [{"id": f"{i}-{pick}", **pool[pick]} for i, pick in enumerate(picks)]
    return json.dumps({"run": "load", "samples": samples}).encode()


def _check(outcome: HttpOutcome, picks: list[int], counts: ClientCounts) -> None:
    """Check status, ids and order, and that equal texts get equal rewards in any batch."""
    if outcome.status != 200:
        counts.wrong.append(outcome.error or f"status {outcome.status}")
        return
    results = json.loads(outcome.content)["results"]
    if [r["id"] for r in results] != [f"{i}-{pick}" for i, pick in enumerate(picks)]:
        counts.wrong.append("ids or their order")
    for pick, result in zip(picks, results, strict=True):
        if result["error"] is not None:
            if result["error"]["code"] != "input_too_long":
                counts.wrong.append(result["error"]["code"])
            continue
        first = counts.first_reward.setdefault(pick, result["raw"])
        difference = abs(first - result["raw"])
        counts.worst_difference = max(counts.worst_difference, difference)
        if difference > SAME_REWARD:
            counts.wrong.append(f"sample {pick} scored {first} and {result['raw']}")


async def _terminate_under_load(
    server: ServerProcess, pool: list[dict[str, Any]], given: argparse.Namespace
) -> dict[str, Any]:
    """Send requests, send SIGTERM while they are in flight, and count how each one ended.

    A request sent before the signal must get a reply or a documented refusal. A connection opened after it may also be
    refused, as no request was accepted on it.
    """
    counts, requests = ClientCounts(), _Requests(pool, given.largest, random.Random(99))
    async with http_client(2 * given.clients, use_proxy=False) as http:

        async def one(*, may_find_it_closed: bool) -> None:
            body = next(requests)
            picks = requests.picks[-1]
            outcome = await send(http, f"{server.url}/score", body)
            if outcome.error:
                counts.n_closed += may_find_it_closed
                counts.n_cut_off += not may_find_it_closed
                return
            if outcome.status == 503:
                counts.n_refused += 1
                return
            counts.latencies_s.append(0.0)
            _check(outcome, picks, counts)

        before = [asyncio.create_task(one(may_find_it_closed=False)) for _ in range(given.clients)]
        await asyncio.sleep(0.5)
        server.process.send_signal(signal.SIGTERM)
        after = [asyncio.create_task(one(may_find_it_closed=True)) for _ in range(given.clients)]
        await asyncio.gather(*before, *after)
    exit_code = await asyncio.to_thread(server.process.wait, 120)
    wrong = counts.wrong[:5] + [f"the server ended with exit code {exit_code}"] * bool(exit_code)
    if counts.n_cut_off:
        wrong.append(f"{counts.n_cut_off} accepted requests were cut off")
    return {
        "answered": len(counts.latencies_s),
        "refused_in_words": counts.n_refused,
        "found_it_closed": counts.n_closed,
        "cut_off": counts.n_cut_off,
        "wrong": wrong,
    }


async def _sample_rss(server: ServerProcess, rss: list[float]) -> None:
    while True:
        await asyncio.sleep(1.0)
        rss.append(server.rss_mib())


def _metric(text: str, name: str) -> float:
    return next((float(line.split()[-1]) for line in text.splitlines() if line.startswith(name)), 0.0)


if __name__ == "__main__":
    sys.exit(main())

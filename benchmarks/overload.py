"""Overload test: ten times more work than the server can do, for a minute; goodput must hold and refusals must be fast.

Starts real servers on the loopback. First, enough clients to keep one server busy measure its peak; then a server with
capacity for `--wait` seconds of that load gets `--times` as many requests, each at its scheduled time whether or not
others have a reply; then the first clients run again. Every request has new texts. Prints the outcomes: goodput
(samples scored a second), latency of refusals, latency of accepted requests, and CPU time of server and clients. Exit
code 1 if goodput fell below 90 % of the peak or a reply was neither a score nor a refusal.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from benchmarks.tables import report
from rewardserve.bench.server_process import ServerProcess

LEAST_SHARE = 0.9


@dataclass
class PhaseResult:
    """Outcomes of the requests of one phase. Times are seconds since its start."""

    started_at: float = field(default_factory=time.monotonic)
    ended: Counter[str] = field(default_factory=Counter)
    accepted_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    scored: list[tuple[float, int]] = field(default_factory=list)
    n_without_retry_after: int = 0
    n_held_back: int = 0  # requests never sent, because all connections waited for a reply

    def goodput(self, since_s: float, until_s: float) -> float:
        """Samples a second that were scored in this part of the phase."""
        return sum(n for at, n in self.scored if since_s <= at < until_s) / (until_s - since_s)


class LoadGenerator:
    """Clients over bare sockets that record outcomes, with a bounded number of connections, which are reused."""

    def __init__(self, port: int, n_samples: int, n_words: int, most: int = 512) -> None:
        self._port, self._n_samples, self._n_words, self._most = port, n_samples, n_words, most
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._n_sent = 0
        self.n_connections = 0

    async def send(self, result: PhaseResult) -> bool:
        """Send one request; return whether it was accepted."""
        if not self._idle and self.n_connections >= self._most:
            result.n_held_back += 1
            return False
        began = time.monotonic()
        try:
            reader, writer = self._idle.pop() if self._idle else await self._connect()
            writer.write(self._request())
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            body = await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        except (OSError, asyncio.IncompleteReadError) as error:
            result.ended[type(error).__name__] += 1
            self.n_connections -= 1
            return False
        if b"connection: close" in head:
            writer.close()
            self.n_connections -= 1
        else:
            self._idle.append((reader, writer))
        return self._record(result, head, body, began)

    def _record(self, result: PhaseResult, head: bytes, body: bytes, began: float) -> bool:
        seconds = time.monotonic() - began
        reply = json.loads(body)
        if not head.startswith(b"http/1.1 200"):
            result.ended[reply["error"]["code"]] += 1
            result.refused_s.append(seconds)
            result.n_without_retry_after += b"retry-after: " not in head
            return False
        is_right = all(isinstance(reward, float) for reward in reply["rewards"])
        result.ended["scored" if is_right else "reply without a score"] += 1
        result.accepted_s.append(seconds)
        result.scored.append((time.monotonic() - result.started_at, self._n_samples))
        return True

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.n_connections += 1
        return await asyncio.open_connection("127.0.0.1", self._port)

    def _request(self) -> bytes:
        self._n_sent += 1
        words = " word" * self._n_words
        samples = [{"prompt": f"{self._n_sent}?", "response": f"{i}{words}"} for i in range(self._n_samples)]
        body = json.dumps({"samples": samples}).encode()
        head = f"POST /score HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        return head.encode() + body


async def keep_busy(generator: LoadGenerator, n_clients: int, seconds: float) -> PhaseResult:
    """Run `n_clients` clients, each sending one request after the other."""
    result = PhaseResult()

    async def one() -> None:
        while time.monotonic() < result.started_at + seconds:
            if not await generator.send(result):
                await asyncio.sleep(0.05)

    await asyncio.gather(*[one() for _ in range(n_clients)])
    return result


async def flood(generator: LoadGenerator, per_s: float, seconds: float) -> tuple[PhaseResult, float]:
    """Send `per_s` requests a second, whatever their outcome; also return the rate that was really sent."""
    result, in_flight, n = PhaseResult(), set[asyncio.Task[bool]](), 0
    while (now := time.monotonic() - result.started_at) < seconds:
        for _ in range(int(now * per_s) - n):
            task = asyncio.create_task(generator.send(result))
            in_flight.add(task)
            task.add_done_callback(in_flight.discard)
            n += 1
        await asyncio.sleep(0.002)
    await asyncio.gather(*in_flight)
    return result, (n - result.n_held_back) / seconds


def main() -> int:
    """Run the overload test. Exit code 1 if a limit was missed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", choices=("torch", "echo"), default="torch")
    parser.add_argument(
        "--model", default="", help="default: the embedded model; for echo, 20 ms a batch of 512 tokens"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="seconds of overload")
    parser.add_argument("--peak-seconds", type=float, default=20.0)
    parser.add_argument("--times", type=float, default=10.0)
    parser.add_argument("--samples", type=int, default=4, help="samples in a request")
    parser.add_argument("--words", type=int, default=24, help="words in a response")
    parser.add_argument("--connections", type=int, default=256, help="connections beside those of accepted requests")
    parser.add_argument("--wait", type=float, default=2.0, help="seconds of work that admission accepts")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    figures = asyncio.Runner(loop_factory=uvloop.new_event_loop).run(measure(given))
    return report(figures, given.json)


async def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Run one measurement."""
    flags = [f"--backend={given.backend}", "--cache.scores=0"]
    if given.backend == "echo":
        flags += [f"{given.model or 'echo:delay_ms=20'}", "--batching.max-tokens=4096"]
    elif given.model:
        flags += [f"{given.model}"]
    with ServerProcess("--log-level=warning", *flags) as server:
        peak = await _peak(LoadGenerator(server.port, given.samples, given.words), given)
    capacity = max(2 * given.samples, int(peak * given.wait))
    capacity_flags = f"--admission.max-samples={capacity}", f"--max-samples-per-request={min(capacity, 1024)}"
    with ServerProcess("--log-level=warning", *flags, *capacity_flags) as server:
        generator = LoadGenerator(
            server.port, given.samples, given.words, capacity // given.samples + given.connections
        )
        await keep_busy(generator, 4, 2.0)
        used, own = server.cpu_s(), time.process_time()
        flooded, sent = await flood(generator, given.times * peak / given.samples, given.seconds)
        cpu = {
            "server": (server.cpu_s() - used) / given.seconds,
            "clients": (time.process_time() - own) / given.seconds,
        }
        after = await keep_busy(generator, max(2, capacity // given.samples // 2), 10.0)
    return _figures(given, peak, capacity, flooded, sent, cpu, after, generator.n_connections)


async def _peak(generator: LoadGenerator, given: argparse.Namespace) -> float:
    await keep_busy(generator, 8, 3.0)
    tries = [await keep_busy(generator, n, given.peak_seconds) for n in (16, 48)]
    return max(each.goodput(0.0, given.peak_seconds) for each in tries)


def _figures(
    given: argparse.Namespace,
    peak: float,
    capacity: int,
    flooded: PhaseResult,
    sent: float,
    cpu: dict[str, float],
    after: PhaseResult,
    n: int,
) -> dict[str, Any]:
    # The queue fills in the first seconds; replies after the last request was sent are not counted.
    goodput = flooded.goodput(min(given.wait, given.seconds / 4), given.seconds)
    recovered = next((at for at in range(10) if after.goodput(at, at + 1) >= LEAST_SHARE * peak), None)
    strange = {how: n for how, n in (flooded.ended + after.ended).items() if how not in ("scored", "overloaded")}
    wrong = [f"goodput fell to {goodput / peak:.0%} of the peak"] * (goodput < LEAST_SHARE * peak)
    wrong += [f"unexpected outcomes: {strange}"] * bool(strange)
    wrong += ["a refusal without Retry-After"] * bool(flooded.n_without_retry_after)
    return {
        "peak, samples/s": round(peak, 1),
        "capacity, samples": capacity,
        "sent, times the peak": round(sent * given.samples / peak, 1),
        "requests a second": round(sent, 1),
        "goodput, samples/s": round(goodput, 1),
        "goodput / peak": round(goodput / peak, 3),
        "accepted: p50, p99, s": [round(quantile(flooded.accepted_s, q), 3) for q in (0.5, 0.99)],
        "refused: p50, p99, ms": [round(1000 * quantile(flooded.refused_s, q), 1) for q in (0.5, 0.99)],
        "server CPU, ms a request": round(1000 * cpu["server"] / sent, 3),
        "outcomes": dict(flooded.ended),
        "after: seconds until 90 % of the peak": recovered,
        "after: accepted p99, s": round(quantile(after.accepted_s, 0.99), 3),
        "CPU, cores": {who: round(cores, 2) for who, cores in cpu.items()},
        "connections": n,
        "wrong": wrong,
    }


def quantile(values: list[float], q: float) -> float:
    """Quantile of `values`; NaN if empty."""
    return sorted(values)[min(len(values) - 1, int(q * len(values)))] if values else float("nan")


if __name__ == "__main__":
    sys.exit(main())

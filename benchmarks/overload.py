"""Ten times more work than the server can do, for a minute: does it go on doing what it can, and refuse the rest at once?

Starts real servers on the loopback. First as many clients as it takes to keep one busy measure what it can do (the peak);
then a server with capacity for `--wait` seconds of that gets `--times` as many requests, each at its own time whether or not
others have been answered; then the first clients come again. Every request asks for other texts. Prints what became of
them: goodput (samples scored a second), how soon was refused, how long the accepted waited, and whose CPU it took.
Exit code 1 if goodput fell below 90 % of the peak or anything else than a score or a refusal came back.
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

from benchmarks.server_process import ServerProcess
from benchmarks.tables import report

LEAST_SHARE = 0.9


@dataclass
class PhaseResult:
    """What became of the requests of one phase. Times are seconds since it began."""

    started_at: float = field(default_factory=time.monotonic)
    ended: Counter[str] = field(default_factory=Counter)
    accepted_s: list[float] = field(default_factory=list)
    refused_s: list[float] = field(default_factory=list)
    scored: list[tuple[float, int]] = field(default_factory=list)
    n_without_retry_after: int = 0
    n_held_back: int = 0  # all connections of the clients waited for an answer: these were never sent

    def goodput(self, since_s: float, until_s: float) -> float:
        """Samples a second that were answered in this part of the phase."""
        return sum(n for at, n in self.scored if since_s <= at < until_s) / (until_s - since_s)


class LoadGenerator:
    """Clients over bare sockets that write down what they see, with so many connections at most, which are used again."""

    def __init__(self, port: int, n_samples: int, n_words: int, most: int = 512) -> None:
        self._port, self._n_samples, self._n_words, self._most = port, n_samples, n_words, most
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._n_asked = 0
        self.n_connections = 0

    async def ask(self, seen: PhaseResult) -> bool:
        """One request. Whether it was accepted."""
        if not self._idle and self.n_connections >= self._most:
            seen.n_held_back += 1
            return False
        began = time.monotonic()
        try:
            reader, writer = self._idle.pop() if self._idle else await self._connect()
            writer.write(self._request())
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            body = await reader.readexactly(int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
        except (OSError, asyncio.IncompleteReadError) as error:
            seen.ended[type(error).__name__] += 1
            self.n_connections -= 1
            return False
        if b"connection: close" in head:
            writer.close()
            self.n_connections -= 1
        else:
            self._idle.append((reader, writer))
        return self._judge(seen, head, body, began)

    def _judge(self, seen: PhaseResult, head: bytes, body: bytes, began: float) -> bool:
        seconds = time.monotonic() - began
        reply = json.loads(body)
        if not head.startswith(b"http/1.1 200"):
            seen.ended[reply["error"]["code"]] += 1
            seen.refused_s.append(seconds)
            seen.n_without_retry_after += b"retry-after: " not in head
            return False
        is_right = all(isinstance(reward, float) for reward in reply["rewards"])
        seen.ended["scored" if is_right else "answered without a score"] += 1
        seen.accepted_s.append(seconds)
        seen.scored.append((time.monotonic() - seen.started_at, self._n_samples))
        return True

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        self.n_connections += 1
        return await asyncio.open_connection("127.0.0.1", self._port)

    def _request(self) -> bytes:
        self._n_asked += 1
        words = " word" * self._n_words
        samples = [{"prompt": f"{self._n_asked}?", "response": f"{i}{words}"} for i in range(self._n_samples)]
        body = json.dumps({"samples": samples}).encode()
        head = f"POST /score HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        return head.encode() + body


async def keep_busy(generator: LoadGenerator, n_clients: int, seconds: float) -> PhaseResult:
    """So many clients, each with one request after the other."""
    seen = PhaseResult()

    async def one() -> None:
        while time.monotonic() < seen.started_at + seconds:
            if not await generator.ask(seen):
                await asyncio.sleep(0.05)

    await asyncio.gather(*[one() for _ in range(n_clients)])
    return seen


async def flood(generator: LoadGenerator, per_s: float, seconds: float) -> tuple[PhaseResult, float]:
    """So many requests a second, whatever becomes of them; and how many were really sent."""
    seen, asking, n = PhaseResult(), set[asyncio.Task[bool]](), 0
    while (now := time.monotonic() - seen.started_at) < seconds:
        for _ in range(int(now * per_s) - n):
            task = asyncio.create_task(generator.ask(seen))
            asking.add(task)
            task.add_done_callback(asking.discard)
            n += 1
        await asyncio.sleep(0.002)
    await asyncio.gather(*asking)
    return seen, (n - seen.n_held_back) / seconds


def main() -> int:
    """Command-line entry. Exit code 1 if it did not hold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--backend", choices=("torch", "echo"), default="torch")
    parser.add_argument("--model", default="", help="default: the embedded one; of echo: 20 ms a batch of 512 tokens")
    parser.add_argument("--seconds", type=float, default=60.0, help="of overload")
    parser.add_argument("--peak-seconds", type=float, default=20.0)
    parser.add_argument("--times", type=float, default=10.0)
    parser.add_argument("--samples", type=int, default=4, help="in a request")
    parser.add_argument("--words", type=int, default=24, help="in a response")
    parser.add_argument("--connections", type=int, default=256, help="beside those of requests that were accepted")
    parser.add_argument("--wait", type=float, default=2.0, help="seconds of work that admission accepts")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    figures = asyncio.Runner(loop_factory=uvloop.new_event_loop).run(measure(given))
    return report(figures, given.json)


async def measure(given: argparse.Namespace) -> dict[str, Any]:
    """One whole measurement."""
    flags = [f"--backend={given.backend}", "--cache.scores=0"]
    if given.backend == "echo":
        flags += [f"{given.model or 'echo:delay_ms=20'}", "--batching.max-tokens=4096"]
    elif given.model:
        flags += [f"{given.model}"]
    with ServerProcess(*flags) as server:
        peak = await _peak(LoadGenerator(server.port, given.samples, given.words), given)
    capacity = max(2 * given.samples, int(peak * given.wait))
    capacity_flags = f"--admission.max-samples={capacity}", f"--max-samples-per-request={min(capacity, 1024)}"
    with ServerProcess(*flags, *capacity_flags) as server:
        generator = LoadGenerator(
            server.port, given.samples, given.words, capacity // given.samples + given.connections
        )
        await keep_busy(generator, 4, 2.0)
        used, own = server.cpu_s(), time.process_time()
        seen, sent = await flood(generator, given.times * peak / given.samples, given.seconds)
        cpu = {
            "server": (server.cpu_s() - used) / given.seconds,
            "clients": (time.process_time() - own) / given.seconds,
        }
        after = await keep_busy(generator, max(2, capacity // given.samples // 2), 10.0)
    return _figures(given, peak, capacity, seen, sent, cpu, after, generator.n_connections)


async def _peak(generator: LoadGenerator, given: argparse.Namespace) -> float:
    await keep_busy(generator, 8, 3.0)
    tries = [await keep_busy(generator, n, given.peak_seconds) for n in (16, 48)]
    return max(seen.goodput(0.0, given.peak_seconds) for seen in tries)


def _figures(
    given: argparse.Namespace,
    peak: float,
    capacity: int,
    seen: PhaseResult,
    sent: float,
    cpu: dict[str, float],
    after: PhaseResult,
    n: int,
) -> dict[str, Any]:
    # In the first seconds the queue fills; what is answered after the last request has been sent is not counted.
    goodput = seen.goodput(min(given.wait, given.seconds / 4), given.seconds)
    recovered = next((at for at in range(10) if after.goodput(at, at + 1) >= LEAST_SHARE * peak), None)
    strange = {how: n for how, n in (seen.ended + after.ended).items() if how not in ("scored", "overloaded")}
    wrong = [f"goodput fell to {goodput / peak:.0%} of the peak"] * (goodput < LEAST_SHARE * peak)
    wrong += [f"came back: {strange}"] * bool(strange)
    wrong += ["a refusal without Retry-After"] * bool(seen.n_without_retry_after)
    return {
        "peak, samples/s": round(peak, 1),
        "capacity, samples": capacity,
        "asked for, times the peak": round(sent * given.samples / peak, 1),
        "requests a second": round(sent, 1),
        "goodput, samples/s": round(goodput, 1),
        "goodput / peak": round(goodput / peak, 3),
        "accepted: p50, p99, s": [round(quantile(seen.accepted_s, q), 3) for q in (0.5, 0.99)],
        "refused: p50, p99, ms": [round(1000 * quantile(seen.refused_s, q), 1) for q in (0.5, 0.99)],
        "server CPU, ms a request": round(1000 * cpu["server"] / sent, 3),
        "what became of them": dict(seen.ended),
        "after: seconds until 90 % of the peak": recovered,
        "after: accepted p99, s": round(quantile(after.accepted_s, 0.99), 3),
        "CPU, cores": {who: round(cores, 2) for who, cores in cpu.items()},
        "connections": n,
        "wrong": wrong,
    }


def quantile(values: list[float], q: float) -> float:
    """NaN of nothing."""
    return sorted(values)[min(len(values) - 1, int(q * len(values)))] if values else float("nan")


if __name__ == "__main__":
    sys.exit(main())

"""Memory test: half an hour of mixed load, after which the server's memory must be flat.

Starts a real server on the loopback and sends the traffic of a long life from a few clients: every wire format, texts
that never repeat, clients that disconnect in the middle, bodies that are not JSON, samples that cannot be scored.
Records its resident memory every second and, over the second half, by how many MiB an hour it grows: the slope of a
least-squares line. Caches fill in the first half; they are made small so that they do. The run monitor keeps texts and
ids of up to 32 runs, some 3 MiB each: filling all 32 would take hours, so there is one run and every sample is
inspected. Exit code 1 if memory grew faster than `--most`, or if a request got anything but an expected reply.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import uvloop

from benchmarks.tables import report
from rewardserve.bench.server_process import ServerProcess

CALLS: dict[str, Any] = {
    "/score": lambda text: {
        "run": "ppo-7",
        "step": 1,
        "samples": [{"prompt": text[:20], "response": text}] * 4,
    },
    "/compare": lambda text: {"comparisons": [{"prompt": "p", "responses": [text, text[::-1]]}]},
    "/get_reward": lambda text: {"query": [text, text + "!"], "prompts": [text[:10], text[:10]]},
    "/slime": lambda text: {"prompt": text[:10], "response": text},
    "/v1/score/evaluation": lambda text: {"messages": [text]},
    "/classify": lambda text: {"input": text},
    "/pooling": lambda text: {"input": text},
    "/v1/embeddings": lambda text: {"input": text},
    "/predict": lambda text: {"inputs": text},
    "/v2/models/reward_model/infer": lambda text: {
        "inputs": [{"name": "sentences", "shape": [1], "datatype": "BYTES", "data": [text]}]
    },
}
"""Body for each route, made from a text that never repeats."""


def main() -> int:
    """Run the memory test. Exit code 1 if memory grew or a request failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--clients", type=int, default=8)
    parser.add_argument("--backend", choices=("torch", "echo"), default="echo")
    parser.add_argument("--per-second", type=float, default=0.0, help="requests per second of all clients; 0: no limit")
    parser.add_argument("--most", type=float, default=10.0, help="limit of the growth, in MiB an hour")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    figures = asyncio.Runner(loop_factory=uvloop.new_event_loop).run(measure(given))
    return report(figures, given.json)


async def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Run one measurement."""
    flags = (f"--backend={given.backend}", "--cache.scores=4096", "--cache.prefix-mib=16", "--tripwires.cpu-share=1")
    with ServerProcess("--log-level=warning", *flags) as server:
        ended, until = Counter[str](), time.monotonic() + 60 * given.minutes
        clients = [asyncio.create_task(_client(server.port, i, until, given, ended)) for i in range(given.clients)]
        track = await _rss_track(server, until)
        await asyncio.gather(*clients)
    return _figures(track, ended, given.most)


async def _rss_track(server: ServerProcess, until: float) -> list[tuple[float, float]]:
    """Sample (seconds, MiB) once a second."""
    track, began = [], time.monotonic()
    while (now := time.monotonic()) < until:
        track.append((now - began, server.rss_mib()))
        await asyncio.sleep(1.0)
    return track


async def _client(port: int, number: int, until: float, given: argparse.Namespace, ended: Counter[str]) -> None:
    rng, n = random.Random(number), 0
    pause_s = given.clients / given.per_second if given.per_second else 0.0
    while time.monotonic() < until:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for _ in range(rng.randint(1, 50)):
                n += 1
                path = rng.choice(list(CALLS))
                text = f"{number} {n} " + " ".join(str(rng.random()) for _ in range(rng.randint(0, 30)))
                body = _with_faults(json.dumps(CALLS[path](text)).encode(), rng)
                disconnects = rng.randrange(50) == 0
                status = await _post(reader, writer, path, body, rng, disconnects=disconnects)
                ended[status] += 1
                if disconnects:
                    break
                await asyncio.sleep(pause_s)
        except (OSError, asyncio.IncompleteReadError) as error:
            ended[type(error).__name__] += 1
        finally:
            writer.close()


def _with_faults(body: bytes, rng: random.Random) -> bytes:
    """Make one in twenty bodies invalid JSON, and give one in twenty an unknown field."""
    chance = rng.randrange(20)
    return body[: len(body) // 2] if chance == 0 else b'{"nobody knows": 1}' if chance == 1 else body


async def _post(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    path: str,
    body: bytes,
    rng: random.Random,
    *,
    disconnects: bool,
) -> str:
    lines = f"POST {path} HTTP/1.1", "host: localhost", "content-type: application/json", f"content-length: {len(body)}"
    head = "\r\n".join([*lines, "", ""]).encode()
    if disconnects:  # at any point of the request, or just after it
        writer.write((head + body)[: rng.randint(1, len(head) + len(body))])
        return "hung up"
    writer.write(head + body)
    answer = (await reader.readuntil(b"\r\n\r\n")).lower()
    await reader.readexactly(int(answer.partition(b"content-length: ")[2].partition(b"\r\n")[0]))
    return answer.split()[1].decode()


def _figures(track: list[tuple[float, float]], ended: Counter[str], most: float) -> dict[str, Any]:
    half = track[len(track) // 2 :]
    slope = float(np.polyfit([s / 3600 for s, _ in half], [mib for _, mib in half], 1)[0])
    strange = {how: n for how, n in ended.items() if how not in ("200", "400", "422", "503", "hung up")}
    return {
        "minutes": round(track[-1][0] / 60, 1),
        "requests": sum(ended.values()),
        "RSS, MiB: start, half, end": [round(track[i][1], 1) for i in (0, len(track) // 2, -1)],
        "RSS, MiB: highest of the first and of the second half": [
            round(max(mib for _, mib in part), 1) for part in (track[: len(track) // 2], half)
        ],
        "slope of the second half, MiB an hour": round(slope, 2),
        "outcomes": dict(ended),
        "wrong": [f"grows by {slope:.1f} MiB an hour"] * (slope > most)
        + [f"unexpected outcomes: {strange}"] * bool(strange),
    }


if __name__ == "__main__":
    sys.exit(main())

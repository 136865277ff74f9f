"""HTTP client for every server: a number of concurrent requests, or requests at given moments. Treats bodies as bytes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

from rewardserve.bench.closed_loop import HttpOutcome, http_client, send
from rewardserve.bench.closed_loop import closed_loop as run_closed_loop


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """Outcome of one request: its JSON or the reason of the failure, and its latency."""

    reply: Any
    error: str
    latency_s: float


def closed_loop(url: str, bodies: Sequence[bytes], clients: int) -> list[HttpAnswer]:
    """Run `clients` clients, each sending its next request as soon as its last one has a reply."""
    return asyncio.run(_closed_loop(url, bodies, clients))


def open_loop(url: str, bodies: Sequence[bytes], moments_s: Sequence[float], clients: int) -> list[HttpAnswer]:
    """Send requests at `moments_s`, whatever the replies; latency counts from then, also while all clients are busy."""
    return asyncio.run(_open_loop(url, bodies, moments_s, clients))


async def _closed_loop(url: str, bodies: Sequence[bytes], clients: int) -> list[HttpAnswer]:
    outcomes: dict[int, HttpOutcome] = {}
    async with http_client(clients) as http:
        await run_closed_loop(http, url, iter(bodies), clients, outcomes.__setitem__)
    return [_answer(outcomes[i]) for i in range(len(bodies))]


async def _open_loop(url: str, bodies: Sequence[bytes], moments_s: Sequence[float], clients: int) -> list[HttpAnswer]:
    started = time.perf_counter()
    async with http_client(clients) as http:

        async def one(body: bytes, due: float) -> HttpAnswer:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            return _answer(await send(http, url, body, due))

        requests = [one(body, started + moment) for body, moment in zip(bodies, moments_s, strict=True)]
        return list(await asyncio.gather(*requests))


def _answer(outcome: HttpOutcome) -> HttpAnswer:
    if outcome.error:
        return HttpAnswer(None, outcome.error, outcome.latency_s)
    if outcome.status != httpx.codes.OK:
        text = outcome.content.decode("utf-8", "replace")
        return HttpAnswer(None, f"{outcome.status} {text[:120]}", outcome.latency_s)
    return HttpAnswer(json.loads(outcome.content), "", outcome.latency_s)

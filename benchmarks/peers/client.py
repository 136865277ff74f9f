"""The one client that asks every server: so many at once, or at given moments. Knows bodies as bytes, no workload."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx

_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class HttpAnswer:
    """What came back for one request: its JSON, or why there is none, and how long it took."""

    reply: Any
    error: str
    latency_s: float


def closed_loop(url: str, bodies: Sequence[bytes], clients: int) -> list[HttpAnswer]:
    """Each client sends its next request as soon as its last one is answered."""
    return asyncio.run(_closed_loop(url, bodies, clients))


def open_loop(url: str, bodies: Sequence[bytes], moments_s: Sequence[float], clients: int) -> list[HttpAnswer]:
    """Requests are due at `moments_s`, answered or not; latency counts from then, also while all clients are busy."""
    return asyncio.run(_open_loop(url, bodies, moments_s, clients))


async def _closed_loop(url: str, bodies: Sequence[bytes], clients: int) -> list[HttpAnswer]:
    answers: dict[int, HttpAnswer] = {}
    turns = iter(range(len(bodies)))
    async with _http(clients) as http:

        async def client() -> None:
            for i in turns:
                answers[i] = await _ask(http, url, bodies[i], time.perf_counter())

        await asyncio.gather(*(client() for _ in range(clients)))
    return [answers[i] for i in range(len(bodies))]


async def _open_loop(url: str, bodies: Sequence[bytes], moments_s: Sequence[float], clients: int) -> list[HttpAnswer]:
    started = time.perf_counter()
    async with _http(clients) as http:

        async def one(body: bytes, due: float) -> HttpAnswer:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            return await _ask(http, url, body, due)

        asked = [one(body, started + moment) for body, moment in zip(bodies, moments_s, strict=True)]
        return list(await asyncio.gather(*asked))


async def _ask(http: httpx.AsyncClient, url: str, body: bytes, since: float) -> HttpAnswer:
    try:
        reply = await http.post(url, content=body)
    except httpx.HTTPError as error:
        return HttpAnswer(None, type(error).__name__, time.perf_counter() - since)
    latency_s = time.perf_counter() - since
    if reply.status_code != httpx.codes.OK:
        return HttpAnswer(None, f"{reply.status_code} {reply.text[:120]}", latency_s)
    return HttpAnswer(reply.json(), "", latency_s)


def _http(clients: int) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=clients, max_keepalive_connections=clients)
    timeout = httpx.Timeout(_TIMEOUT_S)
    return httpx.AsyncClient(headers={"content-type": "application/json"}, limits=limits, timeout=timeout)

"""HTTP client for every server: a number of concurrent requests, or requests at given moments. Treats bodies as bytes."""

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
    answers: dict[int, HttpAnswer] = {}
    turns = iter(range(len(bodies)))
    async with _http(clients) as http:

        async def client() -> None:
            for i in turns:
                answers[i] = await _post(http, url, bodies[i], time.perf_counter())

        await asyncio.gather(*(client() for _ in range(clients)))
    return [answers[i] for i in range(len(bodies))]


async def _open_loop(url: str, bodies: Sequence[bytes], moments_s: Sequence[float], clients: int) -> list[HttpAnswer]:
    started = time.perf_counter()
    async with _http(clients) as http:

        async def one(body: bytes, due: float) -> HttpAnswer:
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            return await _post(http, url, body, due)

        requests = [one(body, started + moment) for body, moment in zip(bodies, moments_s, strict=True)]
        return list(await asyncio.gather(*requests))


async def _post(http: httpx.AsyncClient, url: str, body: bytes, since: float) -> HttpAnswer:
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

"""Send requests to a server from a number of concurrent clients, each as soon as its last one has a reply.

Treats bodies as bytes and draws no conclusion from a reply. A failed request is not sent again: a measurement that retried would
count the wait as latency and hide the failure.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx

TIMEOUT_S = 600.0
_PAUSE_S = 1.0
"""Wait of a client after a request without a reply, so that a dead server is not flooded with connections."""
_OVERLOADED = (429, 503)


@dataclass(frozen=True, slots=True)
class HttpOutcome:
    """Outcome of one request. `status` is 0 where there was no reply; then `error` is the type of the exception."""

    status: int
    content: bytes
    error: str
    retry_after_s: float | None
    latency_s: float


OnOutcome = Callable[[int, HttpOutcome], None]
"""Called with the index of the request, counted from 0, and its outcome."""


def http_client(n_clients: int, *, headers: dict[str, str] | None = None, use_proxy: bool = True) -> httpx.AsyncClient:
    """Connections for this number of clients. `use_proxy`: obey the proxy variables of the environment."""
    return httpx.AsyncClient(
        headers={"content-type": "application/json", **(headers or {})},
        limits=httpx.Limits(max_connections=n_clients, max_keepalive_connections=n_clients),
        timeout=httpx.Timeout(TIMEOUT_S),
        trust_env=use_proxy,
    )


async def closed_loop(
    http: httpx.AsyncClient,
    url: str,
    bodies: Iterator[bytes],
    n_clients: int,
    on_outcome: OnOutcome,
    *,
    until: float = math.inf,
) -> None:
    """Send all bodies, and none after `until` on `time.perf_counter`. A client that is told to wait (Retry-After) waits."""
    numbered = enumerate(bodies)

    async def client() -> None:
        while time.perf_counter() < until:
            request = next(numbered, None)
            if request is None:
                return
            number, body = request
            outcome = await send(http, url, body)
            on_outcome(number, outcome)
            if (pause_s := _pause_s(outcome)) > 0:
                await asyncio.sleep(min(pause_s, max(0.0, until - time.perf_counter())))

    await asyncio.gather(*(client() for _ in range(n_clients)))


async def send(http: httpx.AsyncClient, url: str, body: bytes, since: float | None = None) -> HttpOutcome:
    """Send one request. Its latency counts from `since`, by default from now, to the last byte of the reply."""
    since = time.perf_counter() if since is None else since
    try:
        reply = await http.post(url, content=body)
    except httpx.HTTPError as error:
        return HttpOutcome(0, b"", type(error).__name__, None, time.perf_counter() - since)
    latency_s = time.perf_counter() - since
    return HttpOutcome(reply.status_code, reply.content, "", _retry_after_s(reply), latency_s)


def _pause_s(outcome: HttpOutcome) -> float:
    return _PAUSE_S if outcome.status == 0 else outcome.retry_after_s or 0.0


def _retry_after_s(reply: httpx.Response) -> float | None:
    """The seconds of Retry-After of an overloaded server; None for a date, which a client on another clock cannot use."""
    text = reply.headers.get("retry-after", "")
    return float(text) if reply.status_code in _OVERLOADED and text.isdecimal() else None

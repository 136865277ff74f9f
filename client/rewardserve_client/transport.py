"""One attempt over httpx: an `Ask` goes in, what came of it comes out. Decides nothing.

Everything is bounded by one clock from the first byte sent to the last one read: a server that answers a byte at a time
is as late as one that does not answer.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version

import httpx

from rewardserve_client.classify import Answer, Broken, Event
from rewardserve_client.errors import Misconfigured
from rewardserve_client.request_plan import Ask

_MOST_BYTES = 256 * 2**20
_LONGEST_TOLD_S = 10**6  # servers read eleven digits of milliseconds
_CONNECT_S = 5.0  # three tries of TCP; a host that is not there drops packets and says nothing
_KEEPALIVE_S = 4.0  # shorter than any server or proxy waits for the next request on an idle connection


class Line:
    """Connections to all servers, for one event loop. `close` it in that loop."""

    def __init__(
        self,
        *,
        key: str | None,
        model_digests: Sequence[str],
        connections: int,
        attempt_s: float,
        now: Callable[[], float],
        verify: ssl.SSLContext | bool,
        transport: httpx.AsyncBaseTransport | None,
    ) -> None:
        self._attempt_s = attempt_s
        self._now = now
        self._free = asyncio.Semaphore(connections)
        headers = {"user-agent": f"rewardserve-client/{_version()}", "accept": "application/json"}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        if model_digests:
            headers["x-model-digest"] = ",".join(model_digests)
        self._http = httpx.AsyncClient(
            headers=headers,
            # asyncio.timeout below bounds the whole of an attempt; httpx bounds only its parts, of which one is of use.
            timeout=httpx.Timeout(None, connect=_CONNECT_S),
            limits=httpx.Limits(
                max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=_KEEPALIVE_S
            ),
            verify=verify,
            transport=transport,
            follow_redirects=False,
        )

    async def send(self, ask: Ask) -> Event:
        """Do it once."""
        try:
            async with asyncio.timeout(ask.deadline - self._now()):
                await self._free.acquire()
        except TimeoutError:
            return Broken("no connection of our own was free before the deadline", is_servers=False)
        try:
            return await self._send_now(ask)
        finally:
            self._free.release()

    async def _send_now(self, ask: Ask) -> Event:
        seconds = min(self._attempt_s, ask.deadline - self._now())
        if seconds <= 0:
            return Broken("no connection of our own was free before the deadline", is_servers=False)
        try:
            async with asyncio.timeout(seconds):
                return await self._exchange(ask, seconds)
        except TimeoutError:
            return Broken("no whole answer in time")
        except (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.InvalidURL):
            raise Misconfigured("a URL or a header that cannot be sent") from None
        except httpx.ConnectError as error:
            return Broken(f"ConnectError: {str(error)[:120]}")  # the system's words for it: no request was made yet
        except httpx.HTTPError as error:
            # Only its kind: the request that it carries along holds the key.
            return Broken(type(error).__name__)

    async def _exchange(self, ask: Ask, seconds: float) -> Event:
        request = self._http.build_request(
            "GET" if ask.body is None else "POST", ask.url + ask.path, content=ask.body, headers=_headers(ask, seconds)
        )
        response = await self._http.send(request, stream=True)
        try:
            pieces: list[bytes] = []
            n_bytes = 0
            async for piece in response.aiter_bytes():
                pieces.append(piece)
                n_bytes += len(piece)
                if n_bytes > _MOST_BYTES:
                    return Broken("an answer without end")
            return Answer(response.status_code, b"".join(pieces), response.headers.get("retry-after"))
        finally:
            await response.aclose()

    async def close(self) -> None:
        """Hang up."""
        await self._http.aclose()


def _headers(ask: Ask, seconds: float) -> dict[str, str]:
    if ask.body is None:
        return {}
    left_ms = max(1, math.floor(1000 * min(seconds, _LONGEST_TOLD_S)))
    return {"content-type": "application/json", "x-deadline-ms": str(left_ms), "idempotency-key": ask.key}


def _version() -> str:
    try:
        return version("rewardserve-client")
    except PackageNotFoundError:  # run from a checkout
        return "0"

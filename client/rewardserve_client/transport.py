"""Send one attempt over httpx: takes an `Attempt`, returns its result. Makes no decisions.

One timeout bounds everything from the first byte sent to the last byte read, so a server that sends its reply byte by
byte times out like a silent one.
"""

from __future__ import annotations

import asyncio
import math
import ssl
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version

import httpx

from rewardserve_client.classify import AttemptResult, HttpReply, TransportError
from rewardserve_client.errors import Misconfigured
from rewardserve_client.request_plan import Attempt

_MAX_REPLY_BYTES = 256 * 2**20
_MAX_DEADLINE_S = 10**6  # servers read at most eleven digits of milliseconds
_CONNECT_S = 5.0  # three tries of TCP; an absent host drops packets without an error
_KEEPALIVE_S = 4.0  # shorter than the idle timeout of any server or proxy


class ConnectionPool:
    """Connections to all servers, for one event loop. `close` it in that loop."""

    def __init__(
        self,
        *,
        key: str | None,
        model_digests: Sequence[str],
        connections: int,
        attempt_timeout_s: float,
        now: Callable[[], float],
        verify: ssl.SSLContext | bool,
        transport: httpx.AsyncBaseTransport | None,
    ) -> None:
        self._attempt_timeout_s = attempt_timeout_s
        self._now = now
        self._free = asyncio.Semaphore(connections)
        headers = {"user-agent": f"rewardserve-client/{_version()}", "accept": "application/json"}
        if key is not None:
            headers["authorization"] = f"Bearer {key}"
        if model_digests:
            headers["x-model-digest"] = ",".join(model_digests)
        self._http = httpx.AsyncClient(
            headers=headers,
            # asyncio.timeout below bounds the whole attempt; httpx bounds only its parts, of which only `connect` is
            # useful.
            timeout=httpx.Timeout(None, connect=_CONNECT_S),
            limits=httpx.Limits(
                max_connections=connections, max_keepalive_connections=connections, keepalive_expiry=_KEEPALIVE_S
            ),
            verify=verify,
            transport=transport,
            follow_redirects=False,
        )

    async def send(self, attempt: Attempt) -> AttemptResult:
        """Send the request once, when a connection is free."""
        try:
            async with asyncio.timeout(attempt.deadline - self._now()):
                await self._free.acquire()
        except TimeoutError:
            return TransportError("all connections of the client were busy until the deadline", is_server_fault=False)
        try:
            return await self._send_connected(attempt)
        finally:
            self._free.release()

    async def _send_connected(self, attempt: Attempt) -> AttemptResult:
        seconds = min(self._attempt_timeout_s, attempt.deadline - self._now())
        if seconds <= 0:
            return TransportError("the deadline passed before the request was sent", is_server_fault=False)
        try:
            async with asyncio.timeout(seconds):
                return await self._exchange(attempt, seconds)
        except TimeoutError:
            return TransportError("no complete reply in time")
        except (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.InvalidURL):
            raise Misconfigured("a URL or a header cannot be sent: check the URL and the API key") from None
        except httpx.ConnectError as error:
            # The operating system's message is safe to quote: no request was made yet.
            return TransportError(f"cannot connect: {str(error)[:120]}")
        except httpx.HTTPError as error:
            # Only the type: the exception carries the request, which holds the key.
            return TransportError(f"the connection broke ({type(error).__name__})")

    async def _exchange(self, attempt: Attempt, seconds: float) -> AttemptResult:
        request = self._http.build_request(
            "GET" if attempt.body is None else "POST",
            attempt.url + attempt.path,
            content=attempt.body,
            headers=_headers(attempt, seconds),
        )
        response = await self._http.send(request, stream=True)
        try:
            pieces: list[bytes] = []
            n_bytes = 0
            async for piece in response.aiter_bytes():
                pieces.append(piece)
                n_bytes += len(piece)
                if n_bytes > _MAX_REPLY_BYTES:
                    return TransportError("the reply exceeds 256 MiB")
            return HttpReply(response.status_code, b"".join(pieces), response.headers.get("retry-after"))
        finally:
            await response.aclose()

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()


def _headers(attempt: Attempt, seconds: float) -> dict[str, str]:
    if attempt.body is None:
        return {}
    left_ms = max(1, math.floor(1000 * min(seconds, _MAX_DEADLINE_S)))
    return {"content-type": "application/json", "x-deadline-ms": str(left_ms), "idempotency-key": attempt.key}


def _version() -> str:
    try:
        return version("rewardserve-client")
    except PackageNotFoundError:  # run from a checkout
        return "0"

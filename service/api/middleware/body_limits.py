"""Limit bodies: the size of one, the size of all in flight, and the time for one to arrive.

Pure ASGI. Does not interpret the bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rewardserve.service.api.error_responses import error_response
from rewardserve.service.errors import BodyTimeout, BodyTooLarge, ClientDisconnected, Overloaded

_LINGER_S = 2.0
"""How long a refusal waits for the rest of a body: a client that is still sending may not read the response."""


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """Limits of one body, of all bodies together, and of the time from the head of a request to the end of its body."""

    max_bytes: int
    max_bytes_in_flight: int
    timeout_s: float


class BodyLimitMiddleware:
    """Stop reading a body at the limits, whatever its headers declare. Bytes count until their request is answered."""

    def __init__(self, app: ASGIApp, *, limits: BodyLimits) -> None:
        self._app = app
        self._limits = limits
        self._n_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse at once if the declared length is too large, else while the body is read."""
        has_body, declared, is_expecting = _body_headers(scope) if scope["type"] == "http" else (False, b"", False)
        if not has_body:
            await self._app(scope, receive, send)
            return
        # No linger for a client that waits for `100 Continue`: it would get that, and then the refusal.
        body = _BodyReader(receive, self._limits.timeout_s, can_linger=not is_expecting)

        async def counted() -> Message:
            message = await body.receive()
            self._n_bytes += len(message.get("body", b""))
            self._check(body)
            return message

        try:
            if declared.isdigit() and int(declared) > self._limits.max_bytes:
                await error_response(self._too_large())(scope, receive, body.before(send))
            else:
                await self._app(scope, counted, body.before(send))
        finally:
            self._n_bytes -= body.n_bytes

    def _check(self, body: _BodyReader) -> None:
        if body.n_bytes > self._limits.max_bytes:
            raise self._too_large()
        if self._n_bytes > self._limits.max_bytes_in_flight:
            body.can_linger = False  # memory is short, so the rest is not read
            raise Overloaded(
                "the bodies of all requests together exceed the limit; try again later",
                retry_after_s=1.0,
                body_bytes_in_flight=self._n_bytes,
                max_body_bytes_in_flight=self._limits.max_bytes_in_flight,
            )

    def _too_large(self) -> BodyTooLarge:
        limit = self._limits.max_bytes
        return BodyTooLarge(f"the body is larger than {limit} bytes: split the request", limit=limit)


class _BodyReader:
    """Read one body within its time limit, and close the connection if the response comes before the end of the body."""

    def __init__(self, receive: Receive, timeout_s: float, *, can_linger: bool) -> None:
        self.n_bytes = 0
        self.can_linger = can_linger
        self._receive = receive
        self._timeout_s = timeout_s
        self._deadline = asyncio.get_running_loop().time() + timeout_s
        self._is_whole = False

    async def receive(self) -> Message:
        """Return the next piece. Raise `BodyTimeout` or `ClientDisconnected`. After the last one, wait for a disconnect."""
        if self._is_whole:
            return await self._receive()
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._next()
        except TimeoutError:
            seconds = self._timeout_s
            raise BodyTimeout(f"the body did not arrive within {seconds:g} s", timeout_s=seconds) from None
        if message["type"] == "http.disconnect":
            raise ClientDisconnected("the client disconnected before the end of the body")
        self.n_bytes += len(message.get("body", b""))
        return message

    def before(self, send: Send) -> Send:
        """Wrap `send` to close the connection after a response to an incomplete body, whose rest would be read without limits."""

        async def send_after_body(message: Message) -> None:
            if message["type"] == "http.response.start" and not self._is_whole:
                await self._linger()
                if not self._is_whole:
                    message["headers"] = [*message.get("headers", ()), (b"connection", b"close")]
            await send(message)

        return send_after_body

    async def _linger(self) -> None:
        """Discard the rest of the body."""
        if not self.can_linger:
            return
        until = min(self._deadline, asyncio.get_running_loop().time() + _LINGER_S)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                while not self._is_whole:
                    await self._next()

    async def _next(self) -> Message:
        message = await self._receive()
        self._is_whole = not message.get("more_body", False)
        return message


def _body_headers(scope: Scope) -> tuple[bool, bytes, bool]:
    """Return whether there is a body, its declared length, and whether the client waits for `100 Continue`."""
    length, is_chunked, is_expecting = b"", False, False
    for name, value in scope["headers"]:
        if name == b"content-length":
            length = value
        elif name == b"transfer-encoding":
            is_chunked = True
        elif name == b"expect":
            is_expecting = True
    return is_chunked or length not in (b"", b"0"), length, is_expecting

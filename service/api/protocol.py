"""uvicorn's HTTP protocol, with bounds for the head of a request and one write to the socket for an answer.

The parser collects headers as long as they come. uvicorn writes the head of an answer and then its body, and uvloop
passes each on at once. A write that wakes up the client is the dearest thing that a small request does.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_MOST_HEADERS = 128
_MOST_HEAD_BYTES = 64 * 2**10
_TOO_LARGE = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"content-length: %d\r\n\r\n%s"
)

_FINAL_HEAD = b"HTTP/1.1 "
_INTERIM_HEAD = b"HTTP/1.1 1"
"""`100 Continue` is waited for: it is not held back."""


class _HeadTooLarge(Exception):
    """Raised into the parser, which gives up then."""


class OneWriteProtocol(HttpToolsProtocol):
    """Everything as in uvicorn, over a `Corked` transport, but for heads without end: 431."""

    _n_head_bytes = _n_pending = 0
    _is_in_head = False

    def data_received(self, data: bytes) -> None:
        """What a client sends. A header that is not over yet is kept by the parser, where nobody sees it."""
        was_in_head = self._is_in_head
        if was_in_head:
            self._n_pending += len(data)
        super().data_received(data)
        if was_in_head and self._is_in_head and self._n_pending > _MOST_HEAD_BYTES and not self.transport.is_closing():
            self._refuse_head()

    def on_message_begin(self) -> None:
        """A head begins."""
        super().on_message_begin()
        self._is_in_head, self._n_head_bytes, self._n_pending = True, 0, 0

    def on_url(self, url: bytes) -> None:
        """A piece of it."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._count(len(name) + len(value))
        if len(self.headers) >= _MOST_HEADERS:
            raise _HeadTooLarge
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The head is over."""
        self._is_in_head = False
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        """What the parser gave up."""
        if self._n_head_bytes > _MOST_HEAD_BYTES or (self._is_in_head and len(self.headers) >= _MOST_HEADERS):
            self._refuse_head()
        else:
            super().send_400_response(msg)

    def _count(self, n_bytes: int) -> None:
        self._n_head_bytes += n_bytes
        if self._n_head_bytes > _MOST_HEAD_BYTES:
            raise _HeadTooLarge

    def _refuse_head(self) -> None:
        limits = f'"max_headers": {_MOST_HEADERS}, "max_bytes": {_MOST_HEAD_BYTES}'
        error = (
            f'{{"error": {{"code": "headers_too_large", "message": "the head of the request is too large", {limits}}}}}'
        )
        self.transport.write(_TOO_LARGE % (len(error), error.encode()))
        self.transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there."""
        super().connection_made(cast(asyncio.Transport, Corked(cast(asyncio.Transport, transport), self.loop)))


class Corked:
    """A transport that keeps the head of an answer until the next write, at most until the event loop comes round."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""

    def write(self, data: bytes) -> None:
        """Send, in this order and nothing twice, though perhaps a little later."""
        if self._head:
            head, self._head = self._head, b""
            self._transport.writelines((head, data))
        elif data.startswith(_FINAL_HEAD) and not data.startswith(_INTERIM_HEAD):
            self._head = data
            self._loop.call_soon(self._flush)
        else:
            self._transport.write(data)

    def close(self) -> None:
        """Send what was kept, then close."""
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        """All else is the transport's own."""
        return getattr(self._transport, name)

    def _flush(self) -> None:
        head, self._head = self._head, b""
        if head and not self._transport.is_closing():
            self._transport.write(head)

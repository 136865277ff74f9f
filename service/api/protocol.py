"""uvicorn's HTTP protocol: one write for an answer instead of two, and an ending for every connection.

uvicorn writes the head of an answer and then its body, and uvloop passes each on at once. A write that wakes up the
client is the dearest thing that a small request does.

uvicorn waits for ever for a head that does not come and for a reader who does not read. Here each connection that owes us
something has a time limit, and all of them together have a bound. Bodies are `intake`'s.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.api.door import Door
from service.api.middleware import request_id
from service.api.problems import problem
from service.errors import HeadTimeout, HeadTooLarge, InvalidHttp, Overloaded, RequestRefused

_FINAL_HEAD = b"HTTP/1.1 "
_INTERIM_HEAD = b"HTTP/1.1 1"
"""`100 Continue` is waited for: it is not held back."""

MAX_HEAD_BYTES = 65_536
MAX_HEADERS = 128

Ended = Literal["slow_head", "large_head", "slow_reader", "displaced", "crowded", "invalid_http"]
"""Why we ended a connection that its client did not."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Of all connections, and of the time for a head, and for an answer to be read once it has been written."""

    max_connections: int
    head_timeout_s: float
    read_timeout_s: float


class Connections:
    """What all connections share: their bound, and which of them owe us a request or the rest of one, the longest first."""

    def __init__(self, limits: ConnectionLimits, tell: Callable[[Ended], None], door: Door) -> None:
        self.limits = limits
        self.tell = tell
        self.door = door
        self.owing: dict[OneWriteProtocol, None] = {}

    def displace(self) -> bool:
        """End the connection that has owed us a whole request for longest. False: all of them wait for us."""
        if (longest := next(iter(self.owing), None)) is None:
            return False
        self.tell("displaced")
        longest.transport.close()
        del self.owing[longest]
        return True


class _HeadTooLarge(Exception):
    """Raised into the parser, which gives up then."""


class OneWriteProtocol(HttpToolsProtocol):
    """Everything as in uvicorn, over a `Corked` transport, within limits.

    A connection is `_serving` from the end of a head to the end of the answer; otherwise it owes us a request. Before
    the first byte of its first request, and from the first byte of any other, there is time for the whole head.
    """

    def __init__(self, *args: Any, shared: Connections, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._all = shared
        self._serving = False
        self._in_head = False
        self._refusal: Response | None = None
        self._n_head_bytes = 0
        self._n_pending = 0
        self._head_timer = _Timer(self.loop, shared.limits.head_timeout_s, self._give_up_head)
        self._read_timer = _Timer(self.loop, shared.limits.read_timeout_s, self._give_up_reader)

    # -- the connection -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client is there. Where there are too many, the one that has been silent for longest makes room."""
        corked = Corked(cast(asyncio.Transport, transport), self.loop, self._all.limits.read_timeout_s)
        super().connection_made(cast(asyncio.Transport, corked))
        if len(self.connections) > self._all.limits.max_connections and not self._all.displace():
            self._end("crowded", Overloaded("there are too many connections; try again later", retry_after_s=1.0))
            return
        self._all.owing[self] = None
        self._head_timer.start()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        super().connection_lost(exc)
        self._all.owing.pop(self, None)
        self._head_timer.stop()
        self._read_timer.stop()

    def data_received(self, data: bytes) -> None:
        """Some of a request, or of several. A header that is not over yet is kept by the parser, where nobody sees it."""
        was_in_head = self._in_head
        super().data_received(data)
        if self.transport.is_closing():
            return
        if was_in_head and self._in_head:
            self._n_pending += len(data)
            if self._n_pending > MAX_HEAD_BYTES:
                self._end_large_head()
        if not self._serving and self.timeout_keep_alive_task is None:
            self._head_timer.start()  # uvicorn's own timer for silence has been unset

    def on_message_begin(self) -> None:
        """The first byte of a head."""
        super().on_message_begin()
        self._owes_since_now()
        self._in_head, self._n_head_bytes, self._n_pending = True, 0, 0

    def on_url(self, url: bytes) -> None:
        """A piece of it."""
        self._count_head(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """One header."""
        self._count_head(len(name) + len(value))
        if len(self.headers) >= MAX_HEADERS:
            raise _HeadTooLarge
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """A whole head. Where it is turned away, its body is thrown away as it comes, in the time of a head."""
        self._in_head = False
        if (answer := self._turned_away()) is not None:
            self._refusal = answer
            return
        super().on_headers_complete()
        self._serving = True
        self._head_timer.stop()

    def on_body(self, body: bytes) -> None:
        """Some of a body."""
        if self._refusal is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """The end of a body; whoever was turned away is told now, and may ask again."""
        if self._refusal is None:
            self._all.owing.pop(self, None)
            super().on_message_complete()
            return
        self._head_timer.stop()
        self._write(self._refusal, closes=not self.parser.should_keep_alive())
        self._refusal = None
        self._idle_since_answer()

    def on_response_complete(self) -> None:
        """An answer has been written."""
        super().on_response_complete()
        is_next_here = not self.cycle.response_complete
        if self.transport.is_closing() or is_next_here:
            return
        self._serving = False
        self._owes_since_now()
        if self._in_head:
            self._head_timer.start()

    def pause_writing(self) -> None:
        """The client does not read as fast as we write."""
        super().pause_writing()
        self._read_timer.start()

    def resume_writing(self) -> None:
        """It has caught up."""
        super().resume_writing()
        self._read_timer.stop()

    # -- endings --------------------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """What the parser gave up."""
        if self._n_head_bytes > MAX_HEAD_BYTES or (self._in_head and len(self.headers) >= MAX_HEADERS):
            self._end_large_head()
        else:
            self._end("invalid_http", InvalidHttp("this is no HTTP request"))

    def _count_head(self, n_bytes: int) -> None:
        self._n_head_bytes += n_bytes
        if self._n_head_bytes > MAX_HEAD_BYTES:
            raise _HeadTooLarge

    def _end_large_head(self) -> None:
        error = HeadTooLarge(
            f"the head has more than {MAX_HEADERS} headers, or is larger than {MAX_HEAD_BYTES} bytes",
            max_headers=MAX_HEADERS,
            limit=MAX_HEAD_BYTES,
        )
        self._end("large_head", error)

    def _give_up_head(self) -> None:
        if self.transport.is_closing():
            return
        seconds = self._all.limits.head_timeout_s
        error = HeadTimeout(f"the head was not here within {seconds:g} s", timeout_s=seconds)
        self._end("slow_head", error if self._in_head else None)

    def _give_up_reader(self) -> None:
        self._all.tell("slow_reader")
        self.transport.abort()

    def _end(self, why: Ended, error: RequestRefused | None) -> None:
        """Close, with an answer if there is a question that it could belong to."""
        self._all.tell(why)
        if error is not None and not self._serving:
            self._write(problem(error), closes=True)
        self.transport.close()

    def _owes_since_now(self) -> None:
        self._all.owing.pop(self, None)
        self._all.owing[self] = None

    def _turned_away(self) -> Response | None:
        """The answer, if this is a request for which there is no seat. Who waits for a go-ahead is asked in first."""
        if self._serving or self.expect_100_continue or self.parser.get_method() != b"POST":
            return None
        length = next((value for name, value in self.headers if name == b"content-length"), b"")
        if not length.isdigit():
            return None
        return self._all.door.turns_away(self.url.partition(b"?")[0], int(length))

    def _write(self, answer: Response, *, closes: bool) -> None:
        asked = next((value for name, value in self.headers or () if name == b"x-request-id"), b"")
        headers = [*answer.raw_headers, (b"x-request-id", request_id(asked).encode())]
        lines = [b"%s: %s\r\n" % header for header in headers + [(b"connection", b"close")] * closes]
        self.transport.write(b"".join([STATUS_LINE[answer.status_code], *lines, b"\r\n", bytes(answer.body)]))

    def _idle_since_answer(self) -> None:
        """As uvicorn does after an answer of the application."""
        self._owes_since_now()
        if self.parser.should_keep_alive():
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        else:
            self.transport.close()


class Corked:
    """A transport that keeps the head of an answer until the next write, at most until the event loop comes round.

    Closed, it waits `patience_s` for what was written to be read.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, patience_s: float) -> None:
        self._transport = transport
        self._loop = loop
        self._patience_s = patience_s
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
        if self._transport.get_write_buffer_size():
            self._loop.call_later(self._patience_s, self._transport.abort)
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        """All else is the transport's own."""
        return getattr(self._transport, name)

    def _flush(self) -> None:
        head, self._head = self._head, b""
        if head and not self._transport.is_closing():
            self._transport.write(head)


class _Timer:
    """Rings once, so long after it was started, unless it is stopped before."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, ring: Callable[[], None]) -> None:
        self._loop, self._seconds, self._ring = loop, seconds, ring
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Nothing, where it is running already."""
        if self._handle is None:
            self._handle = self._loop.call_later(self._seconds, self._ring)

    def stop(self) -> None:
        """From now on it may be started again."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

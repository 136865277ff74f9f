"""uvicorn's HTTP protocol with one write a response instead of two, and with limits for every connection.

uvicorn writes the head of a response and then its body, and uvloop sends each at once. A write that wakes up the
client is the most expensive part of a small request.

uvicorn has no timeout for a head that does not arrive or for a client that does not read. Here each connection that awaits
a request has a time limit, and the number of connections is limited. `body_limits` limits the bodies.

A request whose head is ambiguous is refused, since a proxy may have parsed it differently: RFC 9112, sections 3
and 6. Upgrades are ignored (RFC 9110, 7.8), trailers are dropped (6.5.1).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import httptools
from starlette.responses import Response
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from rewardserve.service.api.error_responses import error_response
from rewardserve.service.api.events import ConnectionEnd, HttpEvents
from rewardserve.service.api.http.load_shedder import LoadShedder
from rewardserve.service.api.middleware.request_log import request_id
from rewardserve.service.errors import HeadTimeout, HeadTooLarge, InvalidHttp, Overloaded, RequestRefused

_FINAL_HEAD = b"HTTP/1.1 "
_INTERIM_HEAD = b"HTTP/1.1 1"
"""`100 Continue` is written at once, since the client waits for it."""

MAX_HEAD_BYTES = 65_536
MAX_HEADERS = 128

_SINGLE_VALUE_HEADERS = frozenset(
    {
        b"host",
        b"authorization",
        b"content-type",
        b"content-encoding",
        b"origin",
        b"idempotency-key",
        b"transfer-encoding",
        b"content-length",
    }
    | {b"x-run", b"x-step", b"x-task", b"x-model-digest", b"x-deadline-ms"}
)
"""Headers that this server reads, each with one value; duplicates are refused."""

_HOST = re.compile(rb"(?:[A-Za-z0-9._~!$&'()*+;=%-]*|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?")
"""RFC 3986, 3.2.2 and 3.2.3, without the comma, which joins the values of two headers."""

_REQUEST_LINE = re.compile(rb"[^\x00-\x20\x7f]+ [^\x00-\x20\x7f]+ ([A-Za-z]+/[0-9]+\.[0-9]+)\r?\n")
"""RFC 9112, 3."""

_EMPTY_LINE = b"\r\n\r\n"

_LAST_REQUEST_WAIT_S = 0.5
"""How long a server that shuts down waits for a request on an idle connection: one may be on its way."""

_FRAMING = frozenset({b"content-length", b"transfer-encoding"})
_NO_TRAILER = _FRAMING | {b"connection", b"proxy-connection", b"upgrade"}
"""The parser acts on these headers in a head and in a trailer."""


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """Limits of the number of connections, of the time for a head to arrive, and for a client to read a response."""

    max_connections: int
    head_timeout_s: float
    read_timeout_s: float


class Connections:
    """State of all connections: their limits, and those that await a request or the rest of one, the longest first."""

    def __init__(self, limits: ConnectionLimits, events: HttpEvents, load_shedder: LoadShedder) -> None:
        self.limits = limits
        self.events = events
        self.load_shedder = load_shedder
        self.awaiting_request: dict[HttpProtocol, None] = {}

    def evict(self) -> bool:
        """Close the connection that has awaited a whole request for longest. Return False if all are being answered."""
        if (longest := next(iter(self.awaiting_request), None)) is None:
            return False
        self.events.on_connection_end("evicted")
        longest.transport.close()
        del self.awaiting_request[longest]
        return True


class _HeadTooLarge(Exception):
    """Raised in a callback of the parser to stop it: the head is too large."""


class _AmbiguousHead(Exception):
    """Raised in a callback of the parser to stop it: the head is ambiguous."""


class HttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol over a `CoalescingTransport`, with limits.

    A connection is `_serving` from the end of a head to the end of the response; otherwise it awaits a request. The time
    limit of the head begins with the connection for the first request, and with the first byte for later ones.

    The parser silently accepts request lines of other protocols (RTSP) and with several spaces. So it is fed in pieces that end
    where a message can end, at the length of a body or at an empty line: then every message begins with a piece, whose first line
    is checked. `_n_left` bytes of a body of known length are still to come.

    httptools treats the bytes after the head of an upgrade as another protocol. Then a new parser reads the body. It is first
    fed a head with the same framing, whose callbacks have no effect (`_is_replay`).
    """

    def __init__(self, *args: Any, shared: Connections, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._shared = shared
        self._serving = False
        self._in_head = False
        self._in_request = False
        self._is_upgrade = False
        self._is_replay = False
        self._head_error: str | None = None
        self._last_error: RequestRefused | None = None
        self._single_values: dict[bytes, bytes] = {}
        self._valid_host = b""
        self._request_line = b""
        self._last_request_line, self._version = b"", ""
        self._n_left = 0
        self._tail = b""
        self._rejection: Response | None = None
        self._n_head_bytes = 0
        self._n_pending = 0
        self._head_timer = _Timer(self.loop, shared.limits.head_timeout_s, self._on_head_timeout)
        self._read_timer = _Timer(self.loop, shared.limits.read_timeout_s, self._on_read_timeout)

    # -- the connection -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Accept a connection. Beyond the limit, evict the connection that has been idle for longest."""
        coalescing = CoalescingTransport(
            cast(asyncio.Transport, transport), self.loop, self._shared.limits.read_timeout_s
        )
        super().connection_made(cast(asyncio.Transport, coalescing))
        if len(self.connections) > self._shared.limits.max_connections and not self._shared.evict():
            self._end("limit_reached", Overloaded("there are too many connections; try again later", retry_after_s=1.0))
            return
        self._shared.awaiting_request[self] = None
        self._head_timer.start()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection and stop its timers."""
        super().connection_lost(exc)
        self._shared.awaiting_request.pop(self, None)
        self._head_timer.stop()
        self._read_timer.stop()

    def shutdown(self) -> None:
        """Close the connection; an idle one after a delay, so that a request on its way is still answered."""
        is_idle = self.cycle is None or self.cycle.response_complete
        if is_idle and not self.transport.is_closing():
            self.loop.call_later(_LAST_REQUEST_WAIT_S, super().shutdown)
        else:
            super().shutdown()

    def data_received(self, data: bytes) -> None:
        """Parse received bytes. `_n_pending` counts bytes without a callback yet: the parser buffers an incomplete header, trailer
        or chunk extension.
        """
        if self._last_error is not None:
            return
        self._unset_keepalive_if_required()
        self._n_pending += len(data)
        try:
            self._feed_pieces(data, self._feed_fast(data) if not self._in_request and self._last_request_line else 0)
        except httptools.HttpParserError:
            self.send_400_response("")
        if self.transport.is_closing() or self._last_error is not None:
            return
        if self._in_request and self._n_pending > MAX_HEAD_BYTES:
            self._end_large_head()
        elif not self._serving and self.timeout_keep_alive_task is None:
            self._head_timer.start()  # uvicorn's keep-alive timer has been unset

    def _feed_fast(self, data: bytes) -> int:
        """Feed a head with the request line of the previous one, and its body if it ends the data. Return the bytes fed."""
        end = data.find(_EMPTY_LINE) + len(_EMPTY_LINE)
        if self._tail or end < len(_EMPTY_LINE) or not data.startswith(self._last_request_line):
            return 0
        self._request_line = self._last_request_line
        n = len(data)
        if end == n:
            self._feed(data)
            return n
        self._feed(data[:end])
        if self._n_left != n - end or self._last_error is not None:
            return end
        self._feed(data[end:])
        return n

    def _feed_pieces(self, data: bytes, at: int) -> None:
        n = len(data)
        while at < n and self._last_error is None:
            end = min(n, at + self._n_left) if self._n_left else self._end_of_piece(data, at)
            piece = data[at:end] if at or end < n else data
            if not self._in_request or self._in_head:
                self._read_request_line(piece)
            self._feed(piece)
            at = end

    def _end_of_piece(self, data: bytes, at: int) -> int:
        """Return the position after the next empty line, which may have begun in earlier data."""
        if not self._tail:
            found = data.find(_EMPTY_LINE, at)
            if found >= 0:
                return found + len(_EMPTY_LINE)
            self._tail = data[max(at, len(data) - 3) :]
            return len(data)
        window = self._tail + data[at:]
        found = window.find(_EMPTY_LINE)
        if found >= 0:
            n_before, self._tail = len(self._tail), b""
            return at + found + len(_EMPTY_LINE) - n_before
        self._tail = window[-3:]
        return len(data)

    def _read_request_line(self, piece: bytes) -> None:
        """Collect the first line of a message, which may arrive in several pieces. Empty lines before it are skipped."""
        if not self._in_request:
            self._request_line = b""
        if not self._request_line.endswith(b"\n"):
            line = self._request_line + piece
            if not self._in_request:
                line = line.lstrip(b"\r\n")
            end = line.find(b"\n") + 1
            self._request_line = line[:end] if end else line

    def _feed(self, piece: bytes) -> None:
        try:
            self.parser.feed_data(piece)
            return
        except httptools.HttpParserUpgrade as upgrade:
            rest = memoryview(piece)[upgrade.args[0] :]
        while True:
            try:
                if self._is_upgrade:
                    self._ignore_upgrade()
                if rest:
                    self.parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as upgrade:
                rest = rest[upgrade.args[0] :]

    def _ignore_upgrade(self) -> None:
        """Continue with a new parser after the head of a request with an upgrade, so that its body is read as any other."""
        framing = [b"%s: %s\r\n" % header for header in self.headers if header[0] in _FRAMING]
        closing = [] if self.parser.should_keep_alive() else [b"connection: close\r\n"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
        self._is_upgrade, self._is_replay = False, True
        self.parser.feed_data(b"".join([b"POST / HTTP/1.1\r\n", *framing, *closing, b"\r\n"]))

    def on_message_begin(self) -> None:
        """Start a request at the first byte of its head."""
        if self._is_replay:
            return
        if self.transport.is_closing():
            raise _AmbiguousHead  # nothing is read after the last request of a connection
        super().on_message_begin()
        self._wait_for_request()
        self._single_values = {}
        self._in_head = self._in_request = True
        self._n_head_bytes, self._n_pending = 0, 0

    def on_url(self, url: bytes) -> None:
        """Append a piece of the URL."""
        if self._is_replay:
            return
        self._count_head(len(url))
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a header. A trailer is counted and dropped; headers of framing are refused there."""
        if self._is_replay:
            return
        self._n_head_bytes += len(name) + len(value)
        if self._n_head_bytes > MAX_HEAD_BYTES:
            raise _HeadTooLarge
        name = name.lower()
        if not self._in_head:
            if name in _NO_TRAILER:
                self._refuse_head(f"{name.decode()} cannot be a trailer")
            return
        if len(self.headers) >= MAX_HEADERS:
            raise _HeadTooLarge
        if name in _SINGLE_VALUE_HEADERS:
            if name in self._single_values:
                self._refuse_head(f"the header {name.decode()} is sent twice")
            self._single_values[name] = value
        elif name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Check a complete head. If the load shedder rejects it, discard its body, within the time limit of a head."""
        if self._is_replay:
            self._is_replay = False
            return
        self._n_pending = 0
        self._check_head()
        self._is_upgrade = self.parser.should_upgrade()
        self._in_head = False
        if b"transfer-encoding" not in self._single_values:
            self._n_left = int(self._single_values.get(b"content-length", 0))
        if (response := self._load_shed_response()) is not None:
            self._rejection = response
            return
        super().on_headers_complete()
        self._serving = True
        self._head_timer.stop()

    def on_body(self, body: bytes) -> None:
        """Pass on a piece of the body, unless the request is rejected."""
        self._n_pending = 0
        self._n_left = max(0, self._n_left - len(body))
        if self._rejection is None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """End the body. A rejected request is answered now."""
        if self._is_upgrade:
            return  # this parser does not get the body of an upgrade
        self._in_request, self._n_left = False, 0
        if self._rejection is None:
            self._shared.awaiting_request.pop(self, None)
            super().on_message_complete()
            return
        self._head_timer.stop()
        self._write(self._rejection, closes=not self.parser.should_keep_alive())
        self._rejection = None
        self._wait_for_next_request()

    def on_response_complete(self) -> None:
        """Wait for the next request after a response, or send a deferred error and close."""
        is_next_here = bool(self.pipeline)
        super().on_response_complete()
        if self.transport.is_closing() or is_next_here:
            return
        self._serving = False
        if self._last_error is not None:
            self._write(error_response(self._last_error), closes=True)
            self.transport.close()
            return
        self._wait_for_request()
        if self._in_head:
            self._head_timer.start()

    def pause_writing(self) -> None:
        """Start the timeout of a client that reads more slowly than the server writes."""
        super().pause_writing()
        self._read_timer.start()

    def resume_writing(self) -> None:
        """Stop the timeout of the client."""
        super().resume_writing()
        self._read_timer.stop()

    # -- endings --------------------------------------------------------------------------------------------

    def send_400_response(self, msg: str) -> None:
        """Send the error of a request that the parser could not read."""
        if self._n_head_bytes > MAX_HEAD_BYTES or (self._in_head and len(self.headers) >= MAX_HEADERS):
            self._end_large_head()
        else:
            self._end("invalid_http", InvalidHttp(self._head_error or "the bytes are not an HTTP request"))

    def _check_head(self) -> None:
        if self._request_line != self._last_request_line:
            self._check_request_line()
        version = self._version
        if version == "1.0":
            self.expect_100_continue = False  # RFC 9110, 10.1.1 and 15.2: HTTP/1.0 has no interim responses
        host, coding = self._single_values.get(b"host"), self._single_values.get(b"transfer-encoding")
        if coding is not None and (coding.lower() != b"chunked" or version != "1.1"):
            self._refuse_head("Transfer-Encoding must be chunked, and needs HTTP/1.1")
        if host is None:
            if version == "1.1":
                self._refuse_head("the header host is missing")
        elif host != self._valid_host:
            if not _HOST.fullmatch(host):
                self._refuse_head("the header host is not a name or an address with an optional port")
            self._valid_host = host
        if not self.url.startswith(b"/") or b"#" in self.url:
            self._read_target()

    def _check_request_line(self) -> None:
        found = _REQUEST_LINE.fullmatch(self._request_line)
        if found is None:
            self._refuse_head("the request line must be method, target and version, separated by single spaces")
        elif found[1] not in (b"HTTP/1.1", b"HTTP/1.0"):
            self._refuse_head("this server supports HTTP/1.1 and HTTP/1.0 only")
        else:
            self._last_request_line, self._version = self._request_line, found[1][5:].decode()

    def _read_target(self) -> None:
        """Read an absolute target, which replaces Host (RFC 9112, 3.2.2)."""
        if b"#" in self.url:
            self._refuse_head("the target of a request must not have a fragment")
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse_head("this server is not a proxy and does not support CONNECT")
        if self.url == b"*" and method == b"OPTIONS":
            return
        target = httptools.parse_url(self.url)
        host = self.url.partition(b"://")[2].partition(b"/")[0].partition(b"?")[0]
        if target.schema not in (b"http", b"https") or not target.host or not _HOST.fullmatch(host):
            self._refuse_head("the target of a request must be a path, or a URL with http or https")
        self.headers[:] = [(b"host", host), *(header for header in self.headers if header[0] != b"host")]
        self.url = (target.path or b"/") + (b"" if target.query is None else b"?" + target.query)

    def _refuse_head(self, fault: str) -> None:
        self._head_error = fault
        raise _AmbiguousHead

    def _count_head(self, n_bytes: int) -> None:
        self._n_head_bytes += n_bytes
        if self._n_head_bytes > MAX_HEAD_BYTES:
            raise _HeadTooLarge

    def _end_large_head(self) -> None:
        error = HeadTooLarge(
            f"the head of the request has more than {MAX_HEADERS} headers, or is larger than {MAX_HEAD_BYTES} bytes",
            max_headers=MAX_HEADERS,
            limit=MAX_HEAD_BYTES,
        )
        self._end("large_head", error)

    def _on_head_timeout(self) -> None:
        if self.transport.is_closing():
            return
        seconds = self._shared.limits.head_timeout_s
        error = HeadTimeout(f"the head of the request did not arrive within {seconds:g} s", timeout_s=seconds)
        self._end("slow_head", error if self._in_head else None)

    def _on_read_timeout(self) -> None:
        self._shared.events.on_connection_end("slow_reader")
        self.transport.abort()

    def _end(self, reason: ConnectionEnd, error: RequestRefused | None) -> None:
        """Close the connection; `error` is sent first if it belongs to a request, after the responses to earlier requests."""
        if self.transport.is_closing():
            return
        self._shared.events.on_connection_end(reason)
        if error is not None and self._serving and (self._in_head or self.pipeline):
            if not self._in_head:
                self.pipeline.popleft()  # the invalid request, which has not been started
            self._last_error = error
            return
        if error is not None and self._serving and not self.cycle.response_started:
            self.cycle.disconnected = True
            self.cycle.message_event.set()
            self._serving = False
        if error is not None and not self._serving:
            self._write(error_response(error), closes=True)
        self.transport.close()

    def _wait_for_request(self) -> None:
        self._shared.awaiting_request.pop(self, None)
        self._shared.awaiting_request[self] = None

    def _load_shed_response(self) -> Response | None:
        """Return the rejection of this request by the load shedder, if any. A client that waits for `100 Continue` gets none."""
        if (
            not self._shared.load_shedder.is_shedding
            or self._serving
            or self.expect_100_continue
            or self.parser.get_method() != b"POST"
        ):
            return None
        length = next((value for name, value in self.headers if name == b"content-length"), b"")
        if not length.isdigit():
            return None
        return self._shared.load_shedder.rejection_for(self.url.partition(b"?")[0], int(length))

    def _write(self, response: Response, *, closes: bool) -> None:
        offered_id = next((value for name, value in self.headers or () if name == b"x-request-id"), b"")
        headers = [*response.raw_headers, (b"x-request-id", request_id(offered_id).encode())]
        lines = [b"%s: %s\r\n" % header for header in headers + [(b"connection", b"close")] * closes]
        self.transport.write(b"".join([STATUS_LINE[response.status_code], *lines, b"\r\n", bytes(response.body)]))

    def _wait_for_next_request(self) -> None:
        """Start the keep-alive timer, or close, as uvicorn does after a response of the application."""
        self._wait_for_request()
        if self.parser.should_keep_alive():
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )
        else:
            self.transport.close()


class CoalescingTransport:
    """A transport that buffers the head of a response until the next write, at most until the next iteration of the event loop.

    After `close` the client has `close_timeout_s` to read the rest.
    """

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop, close_timeout_s: float) -> None:
        self._transport = transport
        self._loop = loop
        self._close_timeout_s = close_timeout_s
        self._head = b""

    def write(self, data: bytes) -> None:
        """Write in order; the head of a response is buffered first."""
        if self._head:
            head, self._head = self._head, b""
            self._transport.writelines((head, data))
        elif data.startswith(_FINAL_HEAD) and not data.startswith(_INTERIM_HEAD):
            self._head = data
            self._loop.call_soon(self._flush)
        else:
            self._transport.write(data)

    def close(self) -> None:
        """Write the buffered head, then close."""
        self._flush()
        if self._transport.get_write_buffer_size():
            self._loop.call_later(self._close_timeout_s, self._transport.abort)
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        """Delegate everything else to the transport."""
        return getattr(self._transport, name)

    def _flush(self) -> None:
        head, self._head = self._head, b""
        if head and not self._transport.is_closing():
            self._transport.write(head)


class _Timer:
    """A timer that calls `callback` once, `seconds` after its start, unless it is stopped before."""

    def __init__(self, loop: asyncio.AbstractEventLoop, seconds: float, callback: Callable[[], None]) -> None:
        self._loop, self._seconds, self._callback = loop, seconds, callback
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start the timer if it is not running."""
        if self._handle is None:
            self._handle = self._loop.call_later(self._seconds, self._callback)

    def stop(self) -> None:
        """Stop the timer. It can be started again."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

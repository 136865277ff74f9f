"""Send bytes to a server over a socket, and parse every response."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass

TIMEOUT_S = 60.0
LAST = b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx-request-id: the-last-one\r\nconnection: close\r\n\r\n"
"""A request that ends the connection: all requests before it are answered by then."""


@dataclass(frozen=True)
class Reply:
    """One response."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name):
        return next((value for each, value in self.headers if each == name), None)

    @property
    def code(self):
        return json.loads(self.body).get("error", {}).get("code")

    @property
    def is_last(self):
        """Whether this is the response to `LAST`."""
        return self.header("x-request-id") == "the-last-one"


def address(url):
    host, port = url.partition("://")[2].rstrip("/").split(":")
    return host, int(port)


def exchange(url, *pieces):
    """Send the pieces one after the other, read until the server closes, and return the responses."""
    return parse(received_from(url, *pieces))


def received_from(url, *pieces):
    """Send the pieces one after the other, read until the server closes, and return the bytes."""
    with socket.create_connection(address(url), timeout=TIMEOUT_S) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for piece in pieces:
                raw.sendall(piece)
        except ConnectionError:
            pass  # refused before all of it was sent
        return rest_of(raw)


def rest_of(raw):
    """All bytes until the connection ends."""
    received = b""
    try:
        while piece := raw.recv(65_536):
            received += piece
    except ConnectionResetError:  # closed on bytes of ours that were not read
        pass
    return received


def parse(received):
    """The responses in a stream of bytes, which must hold nothing else."""
    found = []
    while received:
        head, end, received = received.partition(b"\r\n\r\n")
        assert end, f"half a head: {head[:200]!r}"
        status_line, *lines = head.decode("latin-1").split("\r\n")
        version, status = status_line.split(" ")[:2]
        assert version == "HTTP/1.1", status_line
        if status == "100":
            continue
        headers = [(name.lower(), value) for name, _, value in (line.partition(": ") for line in lines)]
        length = int(dict(headers)["content-length"])
        assert len(received) >= length, "half a body"
        found.append(Reply(int(status), headers, received[:length]))
        received = received[length:]
    return found


def request(method="POST", path="/score", body=b"", *lines, host=b"localhost", framing=None, version=b"1.1"):
    """The bytes of a request. `lines` are further headers; `framing` replaces the Content-Length."""
    head = [b"%s %s HTTP/%s" % (method.encode(), path if isinstance(path, bytes) else path.encode(), version)]
    if host is not None:
        head.append(b"host: " + host)
    if framing is None and (body or method == "POST"):
        head.append(b"content-length: %d" % len(body))
    head += [framing] if framing else []
    return b"\r\n".join([*head, *lines, b"", b""]) + body


def chunked(body, trailers=b"", extension=b""):
    """A body as chunks."""
    return b"%x%s\r\n%s\r\n0\r\n%s\r\n" % (len(body), extension, body, trailers)


class Connection:
    """Client that sends raw bytes, one request after the other, and reconnects where the server has closed."""

    def __init__(self, url):
        self._address = address(url)
        self._stream = None

    def ask(self, head, *, is_head=False):
        """The reply to one request."""
        for is_second_try in (False, True):
            if self._stream is None:
                self._raw = socket.create_connection(self._address, timeout=TIMEOUT_S)
                self._raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._stream = self._raw.makefile("rb")
            try:
                self._raw.sendall(head)
                return self._read(is_head)
            except (ConnectionError, EOFError):
                self._close()
                if is_second_try:
                    raise
        raise AssertionError

    def _read(self, is_head):
        status_line = self._stream.readline()
        if not status_line:
            raise EOFError
        status = int(status_line.split()[1])
        lines = [line.decode("latin-1").rstrip("\r\n") for line in iter(self._stream.readline, b"\r\n")]
        headers = [(name.lower(), value) for name, _, value in (line.partition(": ") for line in lines)]
        reply = Reply(status, headers, b"" if is_head else self._stream.read(int(dict(headers)["content-length"])))
        if reply.header("connection") == "close":
            self._close()
        return reply

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self._close()

    def _close(self):
        if self._stream is not None:
            self._stream.close()
            self._raw.close()
        self._stream = None

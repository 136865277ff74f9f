"""An HTTP server on the loopback that answers as a list of tricks says, then honestly.

Its honest reward of a sample is a function of the sample alone, so that every number can be recomputed.
"""

from __future__ import annotations

import json
import socket
import struct
import threading
from contextlib import suppress
from zlib import crc32

IDENTITY = {"model": "fake", "model_version": 1, "contract": "sha256:c", "calibration": None, "pipeline": "sha256:p"}


def true_reward(sample):
    """The result of a correct server for a sample with any id."""
    content = {name: value for name, value in sample.items() if name != "id"}
    return crc32(json.dumps(content, sort_keys=True).encode()) / 2**31 - 1.0


def honest_result(sample):
    value = true_reward(sample)
    return {
        "id": sample["id"], "reward": value, "raw": value, "normalized": value, "notes": [], "flags": [], "tokens": 3,
        "truncated": False, "missing_end": False, "cached": False, "error": None,
    }  # fmt: skip


def failed_result(sample, code):
    nothing = {"reward": None, "raw": None, "normalized": None}
    return honest_result(sample) | nothing | {"error": {"code": code, "message": "it is so", "limit": 3}}


def reply_to(request, results=None, **identity):
    results = [honest_result(s) for s in request.json["samples"]] if results is None else results
    return IDENTITY | identity | {"rewards": [r["reward"] for r in results], "results": results}


class Request:
    def __init__(self, method, path, headers, body):
        self.method, self.path, self.headers, self.body = method, path, headers, body

    @property
    def json(self):
        return json.loads(self.body)


class FaultyServer:
    """Server that calls `tricks` with the connection and the request, one a request; `requests` has those received."""

    def __init__(self, *tricks, otherwise=None):
        self.tricks = list(tricks)
        self.requests = []
        self.gate = threading.Event()
        self.came = threading.Event()
        self.otherwise = otherwise or honest
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._connections = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def _accept(self):
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
                self._threads.append(thread)
                thread.start()

    def _serve(self, connection):
        with suppress(OSError, ValueError), connection, connection.makefile("rb") as stream:
            while (request := self._read(stream)) is not None:
                with self._lock:
                    self.requests.append(request)
                    self.came.set()
                    trick = self.tricks.pop(0) if self.tricks else self.otherwise
                trick(connection, request, self)

    def _read(self, stream):
        line = stream.readline().decode()
        if not line:
            return None
        method, path, _ = line.split()
        headers = {}
        while (line := stream.readline().decode().strip()) != "":
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        return Request(method, path, headers, stream.read(int(headers.get("content-length", 0))))

    def close(self):
        self.gate.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        self.close()


def send(connection, status, content, **headers):
    payload = content if isinstance(content, bytes) else json.dumps(content).encode()
    named = {"content-type": "application/json", "content-length": len(payload)}
    named |= {k.replace("_", "-"): v for k, v in headers.items()}
    head = f"HTTP/1.1 {status} X\r\n" + "".join(f"{k}: {v}\r\n" for k, v in named.items()) + "\r\n"
    connection.sendall(head.encode() + payload)


def says(content, status=200, **headers):
    """Sends this body for any request."""
    return lambda connection, request, server: send(connection, status, content, **headers)


def error(status, code, **headers):
    return says({"error": {"code": code, "message": "because"}}, status, **headers)


def honest(connection, request, server):
    if request.path == "/score":
        send(connection, 200, reply_to(request))
    else:
        send(connection, 200, {"status": "ready", "identity": {"name": "fake"}})


def twisted(twist):
    """A correct reply, changed by `twist`."""

    def trick(connection, request, server):
        reply = reply_to(request)
        changed = twist(reply)
        send(connection, 200, reply if changed is None else changed)

    return trick


def resets(connection, request, server):
    """Reads the request and resets the connection."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    socket.close(connection.detach())


def halfway(connection, request, server):
    """Announces a longer body than it sends, and closes the connection."""
    send(connection, 200, json.dumps(reply_to(request)).encode()[:40], content_length=4000)
    connection.shutdown(socket.SHUT_RDWR)


def byte_by_byte(connection, request, server):
    """The correct reply, one byte a packet."""
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    payload = json.dumps(reply_to(request)).encode()
    head = f"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {len(payload)}\r\n\r\n"
    for byte in head.encode() + payload:
        connection.sendall(bytes([byte]))


def trickles(connection, request, server):
    """A header that never ends, a byte at a time: never silent for long, and never done."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nx-slow: ")
    while not server.gate.wait(0.02):
        connection.sendall(b"a")


def silent(connection, request, server):
    """Reads the request and sends nothing until the test is over."""
    server.gate.wait(60)

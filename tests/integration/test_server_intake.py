"""Bodies that come slowly, never, or all at once, over raw sockets: they are answered, and hold nothing for ever."""

from __future__ import annotations

import json
import socket
from contextlib import contextmanager

import pytest

from tests.support.service_server import TIMEOUT_S, Server, wait_until

SIZE = 100_000
BODY = json.dumps({"samples": [{"text": "x"}]}).encode().ljust(SIZE)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Room for one and a half bodies."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("key\n")
    limits = f"--max-body-bytes={SIZE}", f"--max-body-bytes-in-flight={SIZE + SIZE // 2}", "--body-timeout-s=3"
    with Server("--backend=echo", f"--keys-file={keys}", *limits) as running:
        yield running


def head(length=SIZE, path="/score", key="key", **headers):
    lines = [f"POST {path} HTTP/1.1", "host: localhost", f"authorization: Bearer {key}"]
    lines += ["transfer-encoding: chunked"] if length is None else [f"content-length: {length}"]
    return "\r\n".join([*lines, *(f"{k}: {v}" for k, v in headers.items()), "", ""]).encode()


def chunk(data):
    return b"%x\r\n%s\r\n" % (len(data), data)


@contextmanager
def connection(server):
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as raw:
        yield raw


def answer(raw):
    """One response, and no byte of the next: status, headers, error code or None."""
    stream = raw.makefile("rb", buffering=0)
    status = int(stream.readline().split()[1])
    headers = dict(line.decode().strip().split(": ", 1) for line in iter(stream.readline, b"\r\n"))
    length, body = int(headers["content-length"]), b""
    while len(body) < length and (piece := stream.read(length - len(body))):
        body += piece
    return status, headers, json.loads(body).get("error", {}).get("code")


def drip(raw):
    """A byte now and then, until there is something to read."""
    raw.settimeout(0.05)
    while True:
        try:
            raw.sendall(b" ")
            raw.recv(1, socket.MSG_PEEK)
            break
        except TimeoutError:
            continue
    raw.settimeout(TIMEOUT_S)


def is_closed(raw):
    try:
        return raw.recv(1) == b""
    except ConnectionResetError:  # it was closed on bytes of ours that nobody wanted
        return True


def ask(server, body=BODY):
    with connection(server) as raw:
        raw.sendall(head(len(body)) + body)
        return answer(raw)


def is_crowded(server):
    return ask(server)[2] == "overloaded"


@pytest.mark.parametrize("length", [SIZE, None])
def test_a_body_that_comes_byte_by_byte_is_refused_in_time_and_its_connection_closed(server, length):
    with connection(server) as raw:
        raw.sendall(head(length))
        drip(raw) if length else raw.sendall(chunk(b" "))
        status, headers, code = answer(raw)
        assert (status, code, headers["connection"]) == (408, "body_timeout", "close")
        assert is_closed(raw)


def test_a_refusal_that_needs_no_body_does_not_hold_the_connection_either(server):
    with connection(server) as raw:
        raw.sendall(head(key="wrong"))
        drip(raw)
        status, headers, _ = answer(raw)
        assert (status, headers["connection"]) == (401, "close")
        assert is_closed(raw)


def test_a_refusal_after_a_whole_body_keeps_the_connection(server):
    with connection(server) as raw:
        for path, key, code in [("/nowhere", "key", "not_found"), ("/score", "wrong", "unauthorized")]:
            raw.sendall(head(path=path, key=key) + BODY)
            _, headers, said = answer(raw)
            assert (said, headers.get("connection")) == (code, None)
        raw.sendall(head() + BODY)
        assert answer(raw)[0] == 200


def test_who_asks_before_sending_is_told_at_once(server):
    with connection(server) as raw:
        raw.sendall(head(SIZE + 1, expect="100-continue"))
        assert answer(raw)[::2] == (413, "body_too_large")
        assert is_closed(raw)
    with connection(server) as raw:
        raw.sendall(head(expect="100-continue"))
        assert raw.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        raw.sendall(BODY)
        assert answer(raw)[0] == 200


@pytest.mark.parametrize("length", [SIZE, None])
def test_bodies_in_flight_are_bounded_and_the_refused_may_come_again(server, length):
    part = BODY[: SIZE * 9 // 10]
    with connection(server) as raw:
        raw.sendall(head(length) + (part if length else chunk(part)))
        wait_until(lambda: is_crowded(server))
        status, headers, _ = ask(server)
        assert (status, headers["retry-after"]) == (503, "1")
        assert ask(server, BODY.strip())[0] == 200, "a small one fits"
        rest = BODY[len(part) :]
        raw.sendall(rest if length else chunk(rest) + chunk(b""))
        assert answer(raw)[0] == 200
    assert [ask(server)[0] for _ in range(3)] == [200] * 3


def test_who_leaves_in_the_middle_of_a_body_releases_its_bytes(server):
    n_left = server.metric("rewardserve_requests_total", route="/score", code="499")
    with connection(server) as raw:
        raw.sendall(head() + BODY[:-10])
        wait_until(lambda: is_crowded(server))
    wait_until(lambda: not is_crowded(server))
    assert server.metric("rewardserve_requests_total", route="/score", code="499") == n_left + 1
    assert "request_bug" not in server.log

"""The head of a request is bounded: in bytes, in headers, while it comes and when it is there. Then the server goes on."""

from __future__ import annotations

import json
import socket

import httpx
import pytest

from tests.support.service_server import TIMEOUT_S, Server


@pytest.fixture(scope="module")
def server():
    with Server("--backend=echo") as running:
        yield running


def told(server, *pieces):
    """What is answered to these bytes; sending ends when the server has had enough."""
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port), timeout=TIMEOUT_S) as raw:
        try:
            for piece in pieces:
                raw.sendall(piece)
            raw.shutdown(socket.SHUT_WR)
        except OSError:
            pass
        try:
            answer = b"".join(iter(lambda: raw.recv(65536), b""))
        except ConnectionResetError:  # it was still being sent to
            return None, None
    head, _, content = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), content


START = b"GET /livez HTTP/1.1\r\nhost: localhost\r\n"


@pytest.mark.parametrize(
    "pieces",
    [
        [START, b"a: b\r\n" * 200, b"\r\n"],
        [START, b"a: " + b"b" * 70_000, b"\r\n\r\n"],
        [START, *[b"header-%d: " % i + b"v" * 10_000 + b"\r\n" for i in range(10)], b"\r\n"],
        [b"GET /livez?" + b"q" * 70_000 + b" HTTP/1.1\r\nhost: localhost\r\n\r\n"],
        [START, b"n" * 70_000 + b": v\r\n\r\n"],
    ],
    ids=["many", "one long", "many long", "a long path", "a long name"],
)
def test_a_head_that_is_too_large_is_answered_with_431(server, pieces):
    status, content = told(server, *pieces)
    assert status in (431, None)
    if content:
        assert json.loads(content)["error"]["code"] == "head_too_large"
    assert server.client.get("/livez").status_code == 200


def test_a_header_without_end_is_not_collected_without_end(server):
    status, _ = told(server, START, b"a: ", *[b"b" * 65_536] * 200)
    assert status in (431, None)


def test_a_head_of_usual_size_is_read_and_another_after_it(server):
    headers = {f"x-{i}": "v" * 300 for i in range(100)}
    for _ in range(3):
        assert server.client.get("/livez", headers=headers).status_code == 200
    pipelined = START + b"\r\n" + START + b"connection: close\r\n\r\n"
    url = httpx.URL(server.url)
    with socket.create_connection((url.host, url.port), timeout=TIMEOUT_S) as raw:
        raw.sendall(pipelined)
        answer = b"".join(iter(lambda: raw.recv(65536), b""))
    assert answer.count(b"200 OK") == 2


def test_large_bodies_are_not_taken_for_heads(server):
    sample = {"prompt": "hi " * 30_000, "response": "yes"}
    for _ in range(3):
        assert server.score(sample, sample, sample).status_code == 200


def test_no_web_socket_goes_past_the_keys(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("a-key-of-more-than-sixteen\n")
    upgrade = (
        b"connection: upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-version: 13\r\nsec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    with Server("--backend=echo", f"--keys-file={keys}") as server:
        status, _ = told(server, b"GET /model HTTP/1.1\r\nhost: localhost\r\n" + upgrade)
        assert status == 401

"""Heads, bodies and trailers put together at random, over a socket: never more answers than another parser (h11) sees requests.

`make test` tries some hundreds, `make test-fuzz` five thousand.
"""

from __future__ import annotations

import json
import os
import random

import h11
import pytest

from tests.support.raw_http import LAST, exchange
from tests.support.service_server import Server

N = 5_000 if "FUZZ_BODIES" in os.environ else 300
BODY = json.dumps({"samples": [{"text": "x"}]}).encode()
NEXT = b"POST /score HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%s" % (len(BODY), BODY)
STARTS = [b"POST /score HTTP/1.1"] * 6 + [b"GET /livez HTTP/1.1", b"POST /score HTTP/1.0", b"POST http://localhost/score HTTP/1.1",
          b"DELETE /score HTTP/1.1", b"OPTIONS * HTTP/1.1", b"POST /score HTTP/2.0"]  # fmt: skip
LENGTHS = [b"content-length: %d" % len(BODY), b"content-length: 0", b"content-length: 5",
           b"Content-Length:%d" % (len(BODY) + len(NEXT)), b"content-length: 00%d" % len(BODY),
           b"content-length: \t%d " % len(BODY)]  # fmt: skip
CODINGS = [b"transfer-encoding: chunked", b"Transfer-Encoding: Chunked", b"transfer-encoding: identity",
           b"transfer-encoding: xchunked", b"transfer-encoding: chunked, chunked", b"transfer-encoding : chunked",
           b"transfer-encoding:\tchunked"]  # fmt: skip
OTHERS = [b"connection: upgrade\r\nupgrade: h2c", b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMA",
          b"connection: keep-alive", b"upgrade: websocket", b"x: y", b"x:", b"x: a\r\n b", b"x : y", b"x: \x80\xff",
          b"host: other", b"expect: 100-continue", b"content-type: application/json", b"x-run: a", b"x-run: b", b"te: trailers",
          b"trailer: x-run"]  # fmt: skip
TRAILERS = [
    b"",
    b"x-run: t\r\n",
    b"content-length: 3\r\n",
    b"transfer-encoding: chunked\r\n",
    b"connection: upgrade\r\nupgrade: h2c\r\n",
    b"x\r\n",
]


@pytest.fixture(scope="module")
def server():
    with Server("--backend=echo", "--log-level=error", "--head-timeout-s=2", "--body-timeout-s=2") as running:
        yield running


def made(rng):
    """A request, and what a client may have put behind it."""
    lines = [rng.choice(STARTS)] + [b"host: localhost"] * (rng.random() < 0.95)
    lines += rng.sample(LENGTHS, rng.choice([0, 1, 1, 1, 2]))
    lines += rng.sample(CODINGS, rng.choice([0, 0, 0, 1, 1, 2]))
    lines += rng.sample(OTHERS, rng.choice([0, 1, 2, 3]))
    rest = lines[1:]
    rng.shuffle(rest)
    size = rng.choice([b"%x" % len(BODY)] * 4 + [b"%x;a=b" % len(BODY), b"0%x" % len(BODY), b"%x " % len(BODY), b"5"])
    chunks = size + b"\r\n" + BODY + b"\r\n0\r\n" + rng.choice(TRAILERS) + b"\r\n"
    body = rng.choice([BODY, BODY, chunks, chunks, b"", NEXT])
    return b"\r\n".join([lines[0], *rest, b"", b""]) + body + rng.choice([b"", NEXT, NEXT + NEXT])


def n_requests(sent):
    """How many requests h11 finds, up to the first that it cannot read. The last may lack a part of its body: a route that reads
    none answers without it, and the connection is closed.
    """
    connection, n = h11.Connection(h11.SERVER), 0
    connection.receive_data(sent)
    connection.receive_data(b"")
    try:
        while True:
            event = connection.next_event()
            n += isinstance(event, h11.Request)
            if isinstance(event, h11.EndOfMessage):
                connection.send(h11.Response(status_code=200, headers=[("content-length", "0")]))
                connection.send(h11.EndOfMessage())
                connection.start_next_cycle()
            elif not isinstance(event, h11.Request | h11.Data):
                return n
    except h11.ProtocolError:
        return n


@pytest.mark.timeout(7200)
def test_no_bytes_are_answered_that_another_parser_takes_for_no_request(server):
    rng, n_answered = random.Random(19), 0
    for _ in range(N):
        sent = made(rng)
        replies = exchange(server.url, sent, LAST)
        answered = [reply for reply in replies if reply.status not in (400, 408, 431)]
        assert all(reply.status < 500 for reply in replies), (sent, replies)
        assert len(answered) <= n_requests(sent + LAST), (sent, replies)
        n_answered += len(answered)
    assert n_answered > N / 10, "hardly anything was a request at all"
    assert "request_bug" not in server.log

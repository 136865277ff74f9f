"""Where one request ends and the next begins: RFC 9112, over a socket, against a real server.

Each case is refused, with the connection closed behind it, or answered once; no byte of a body is ever taken for a request.
"""

from __future__ import annotations

import json

import pytest

from tests.support.raw_http import LAST, chunked, exchange, received_from, request
from tests.support.service_server import Server

BODY = json.dumps({"samples": [{"text": "x"}]}).encode()
SMUGGLED = request("POST", "/score", BODY, b"x-request-id: smuggled")
CHUNKED = b"transfer-encoding: chunked"
UPGRADES = [
    (b"connection: Upgrade", b"upgrade: h2c"),
    (b"connection: upgrade, HTTP2-Settings", b"upgrade: h2c", b"http2-settings: AAMAAABkAAQCAAAAAAIAAAAA"),
    (
        b"Connection: keep-alive, Upgrade",
        b"Upgrade: websocket",
        b"sec-websocket-version: 13",
        b"sec-websocket-key: eA==",
    ),
    (b"connection: upgrade", b"upgrade: TLS/1.0, anything/9"),
]


@pytest.fixture(scope="module")
def server():
    with Server("--backend=echo", "--head-timeout-s=5", "--body-timeout-s=5") as running:
        yield running


def answered_once(server, *pieces):
    """The reply to a request that is followed by the last one, and by nothing else."""
    first, last = exchange(server.url, *pieces, LAST)
    assert last.is_last
    return first


def refused(server, *pieces):
    """The only reply: the connection is closed behind it, and the rest is not looked at."""
    (only,) = exchange(server.url, *pieces, LAST)
    assert only.header("connection") == "close"
    return only


# -- upgrades (RFC 9110, 7.8: "A server MAY ignore a received Upgrade header field") ----------------------------------


@pytest.mark.parametrize("upgrade", UPGRADES)
def test_an_upgrade_is_ignored_and_the_body_belongs_to_its_request(server, upgrade):
    reply = answered_once(server, request("POST", "/score", BODY, *upgrade))
    assert (reply.status, reply.header("upgrade")) == (200, None)
    assert json.loads(reply.body)["usage"]["samples"] == 1
    reply = answered_once(server, request("POST", "/score", chunked(BODY), *upgrade, framing=CHUNKED))
    assert reply.status == 200
    assert answered_once(server, request("GET", "/livez", b"", *upgrade)).status == 200


@pytest.mark.parametrize("upgrade", UPGRADES[:2])
@pytest.mark.parametrize("framing", [None, CHUNKED])
def test_a_request_in_the_body_of_an_upgrade_is_a_body(server, upgrade, framing):
    body = SMUGGLED if framing is None else chunked(SMUGGLED)
    reply = answered_once(server, request("POST", "/score", body, *upgrade, framing=framing))
    assert (reply.status, reply.code) == (400, "invalid_json")


def test_an_upgrade_is_ignored_however_its_bytes_are_cut(server):
    whole = request("POST", "/score", BODY, *UPGRADES[1]) + request("POST", "/compare", b"{}", *UPGRADES[0])
    for size in (1, 7, 64, len(whole) - len(BODY)):
        pieces = [whole[i : i + size] for i in range(0, len(whole), size)]
        first, second, last = exchange(server.url, *pieces, LAST)
        assert (first.status, second.code, last.is_last) == (200, "invalid_request", True)


def test_many_upgrades_in_one_piece_are_answered_one_by_one(server):
    *many, last = exchange(server.url, request("POST", "/score", BODY, *UPGRADES[0]) * 20 + LAST)
    assert [reply.status for reply in many] == [200] * 20
    assert last.is_last


def test_an_upgrade_that_waits_for_a_go_ahead_gets_one_and_is_read(server):
    assert answered_once(server, request("POST", "/score", BODY, *UPGRADES[0], b"expect: 100-continue")).status == 200


# -- trailers ---------------------------------------------------------------------------------------------------------

TRAILERS = (
    b"x-run: from-a-trailer\r\nx-step: 7\r\nauthorization: Bearer no\r\nidempotency-key: k\r\nhost: evil\r\n"
    b"origin: http://evil\r\nx-request-id: from-a-trailer\r\ncontent-type: x\r\nx-deadline-ms: 0\r\nexpect: 100-continue\r\n"
)
OF_THE_CONNECTION = [
    b"content-length: 3",
    b"transfer-encoding: chunked",
    b"connection: close",
    b"connection: upgrade\r\nupgrade: h2c",
]


@pytest.mark.parametrize("trailer", [TRAILERS, *(line + b"\r\n" for line in TRAILERS.split(b"\r\n")[:-1])])
def test_a_trailer_is_no_header(server, trailer):
    for pause in (False, True):
        whole = request("POST", "/score?run=named", chunked(BODY, trailer), framing=CHUNKED)
        at = len(whole) - len(trailer) - 2
        reply = answered_once(server, *((whole[:at], whole[at:]) if pause else (whole,)))
        assert (reply.status, reply.header("idempotency-replayed")) == (200, None)
        assert reply.header("x-request-id") != "from-a-trailer"
    assert "from-a-trailer" not in server.client.get("/tripwires").text


@pytest.mark.parametrize("trailer", OF_THE_CONNECTION)
def test_a_trailer_that_speaks_of_the_connection_is_refused(server, trailer):
    body = chunked(BODY, trailer + b"\r\n")
    reply = refused(server, request("POST", "/score", body, framing=CHUNKED) + SMUGGLED)
    assert (reply.status, reply.code) == (400, "invalid_http")


def test_trailers_and_extensions_of_chunks_without_end_are_refused_and_not_kept(server):
    head = request("POST", "/score", framing=CHUNKED)
    for endless in (b"0\r\nx: " + b"a" * 500_000, b"0\r\n" + b"x: a\r\n" * 100_000, b"1;" + b"a" * 500_000):
        pieces = [endless[i : i + 50_000] for i in range(0, len(endless), 50_000)]
        before = server.metric("rewardserve_connections_ended_total", reason="large_head")
        (only,) = exchange(server.url, head, *pieces)
        assert (only.status, only.code) == (431, "head_too_large")
        assert server.metric("rewardserve_connections_ended_total", reason="large_head") == before + 1


# -- heads that mean two things ---------------------------------------------------------------------------------------


def lines(*headers, body=BODY, start=b"POST /score HTTP/1.1"):
    return b"\r\n".join([start, *headers, b"", b""]) + body


HOST, LENGTH = b"host: localhost", b"content-length: %d" % len(BODY)
AMBIGUOUS = {
    "no host": lines(LENGTH),
    "two hosts": lines(HOST, b"host: localhost", LENGTH),
    "two hosts that differ": lines(HOST, b"Host: evil", LENGTH),
    "a host with a path": lines(b"host: localhost/x", LENGTH),
    "a host with a user": lines(b"host: a@localhost", LENGTH),
    "two hosts in one": lines(b"host: localhost, evil", LENGTH),
    "a host with a space": lines(b"host: local host", LENGTH),
    "a port that is none": lines(b"host: localhost:http", LENGTH),
    "two lengths": lines(HOST, LENGTH, b"content-length: 5"),
    "the same length twice": lines(HOST, LENGTH, LENGTH),
    "lengths in a list": lines(HOST, b"content-length: %d, %d" % (len(BODY), len(BODY))),
    "a signed length": lines(HOST, b"content-length: +%d" % len(BODY)),
    "a negative length": lines(HOST, b"content-length: -1"),
    "a length in hexadecimal": lines(HOST, b"content-length: 0x1c"),
    "a length beyond 64 bits": lines(HOST, b"content-length: 18446744073709551617"),
    "a length with an underscore": lines(HOST, b"content-length: 2_8"),
    "length and chunks": lines(HOST, LENGTH, CHUNKED, body=chunked(BODY)),
    "chunks and length": lines(HOST, CHUNKED, LENGTH, body=chunked(BODY)),
    "chunks, then as it is": lines(HOST, b"transfer-encoding: chunked, identity", body=chunked(BODY)),
    "as it is": lines(HOST, b"transfer-encoding: identity", body=BODY),
    "as it is, then chunks": lines(HOST, b"transfer-encoding: identity, chunked", body=chunked(BODY)),
    "xchunked": lines(HOST, b"transfer-encoding: xchunked", body=chunked(BODY)),
    "chunks twice": lines(HOST, CHUNKED, CHUNKED, body=chunked(BODY)),
    "compressed chunks": lines(HOST, b"transfer-encoding: gzip, chunked", body=chunked(BODY)),
    "no coding": lines(HOST, b"transfer-encoding:", body=chunked(BODY)),
    "a tab in a coding": lines(HOST, b"transfer-encoding: \x0bchunked", body=chunked(BODY)),
    "chunks in HTTP/1.0": lines(HOST, CHUNKED, body=chunked(BODY), start=b"POST /score HTTP/1.0"),
    "a folded header": lines(HOST, b"x: a\r\n b", LENGTH),
    "a folded length": lines(HOST, b"content-length:\r\n %d" % len(BODY)),
    "a bare line feed": lines(HOST, b"x: a\ny: b", LENGTH),
    "a bare carriage return": lines(HOST, b"x: a\rb", LENGTH),
    "a space before the colon": lines(HOST, b"content-length : %d" % len(BODY)),
    "a tab before the colon": lines(HOST, b"transfer-encoding\t: chunked", LENGTH),
    "a header without a colon": lines(HOST, b"x", LENGTH),
    "a header without a name": lines(HOST, b": x", LENGTH),
    "a space before the first header": lines(b" " + HOST, LENGTH),
    "a zero byte": lines(HOST, b"x: a\0b", LENGTH),
    "two keys": lines(HOST, b"authorization: Bearer a", b"authorization: Bearer b", LENGTH),
    "two runs": lines(HOST, b"x-run: a", b"x-run: b", LENGTH),
    "two idempotency keys": lines(HOST, b"idempotency-key: a", b"Idempotency-Key: b", LENGTH),
    "two content types": lines(HOST, b"content-type: application/json", b"content-type: text/plain", LENGTH),
    "two origins": lines(HOST, b"origin: http://localhost", b"origin: http://evil", LENGTH),
    "HTTP/0.9": lines(HOST, LENGTH, start=b"POST /score"),
    "HTTP/2.0": lines(HOST, LENGTH, start=b"POST /score HTTP/2.0"),
    "HTTP/1.2": lines(HOST, LENGTH, start=b"POST /score HTTP/1.2"),
    "RTSP/1.0": lines(HOST, LENGTH, start=b"POST /score RTSP/1.0"),
    "RTSP/1.1": lines(HOST, LENGTH, start=b"POST /score RTSP/1.1"),
    "a method of RTSP": lines(HOST, LENGTH, start=b"DESCRIBE /score RTSP/1.0"),
    "ICE/1.0": lines(HOST, LENGTH, start=b"SOURCE /score ICE/1.0"),
    "HTTPS/1.1": lines(HOST, LENGTH, start=b"POST /score HTTPS/1.1"),
    "two spaces before the target": lines(HOST, LENGTH, start=b"POST  /score HTTP/1.1"),
    "two spaces before the version": lines(HOST, LENGTH, start=b"POST /score  HTTP/1.1"),
    "a tab before the version": lines(HOST, LENGTH, start=b"POST /score\tHTTP/1.1"),
    "a right line behind a wrong one": lines(HOST, b"x: POST /score HTTP/1.1", LENGTH, start=b"POST  /score HTTP/1.1"),
    "a zero in the version": lines(HOST, LENGTH, start=b"POST /score HTTP/01.1"),
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a tunnel": lines(HOST, LENGTH, start=b"CONNECT localhost:80 HTTP/1.1"),
    "a method in lower case": lines(HOST, LENGTH, start=b"post /score HTTP/1.1"),
    "a space after the version": lines(HOST, LENGTH, start=b"POST /score HTTP/1.1 "),
    "a control character in the target": lines(HOST, LENGTH, start=b"POST /sc\x01ore HTTP/1.1"),
    "a byte beyond ASCII in the target": lines(HOST, LENGTH, start=b"POST /sc\xc3\xa9 HTTP/1.1"),
    "a fragment in the target": lines(HOST, LENGTH, start=b"POST /score#x HTTP/1.1"),
    "an absolute target without a host": lines(LENGTH, start=b"POST http://localhost/score HTTP/1.1"),
}


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_a_head_that_could_mean_two_things_is_refused_and_nothing_behind_it_is_read(server, name):
    reply = refused(server, AMBIGUOUS[name] + SMUGGLED)
    assert (reply.status, reply.code) == (400, "invalid_http")


LINES = ("RTSP/1.0", "two spaces before the target", "two spaces before the version", "a right line behind a wrong one")


@pytest.mark.parametrize("name", LINES)
@pytest.mark.parametrize("framing", [(), CHUNKED])
@pytest.mark.parametrize("n_bytes", [1, 7, 10**6])
def test_a_wrong_line_is_found_behind_other_requests_however_the_bytes_are_cut(server, name, framing, n_bytes):
    first = request("POST", "/score", chunked(BODY) if framing else BODY, framing=framing or None)
    content = first * 2 + request("GET", "/livez") + AMBIGUOUS[name] + SMUGGLED
    pieces = [content[i : i + n_bytes] for i in range(0, len(content), n_bytes)]
    *answered, last = exchange(server.url, *pieces, LAST)
    assert [reply.status for reply in answered] == [200] * 3
    assert (last.status, last.code, last.header("connection")) == (400, "invalid_http", "close")


@pytest.mark.parametrize("n_bytes", [1, 3, 10**6])
@pytest.mark.parametrize("before", [b"", b"\r\n", b"\r\n\r\n"])
def test_empty_lines_in_bodies_and_before_requests_end_nothing(server, before, n_bytes):
    body = b'{"samples":\r\n\r\n[{"text":\r\n\r\n"a"}]}\r\n\r\n'
    content = b"".join(
        before + each
        for each in (
            request("POST", "/score", body),
            request("POST", "/score", chunked(body), framing=CHUNKED),
            request("POST", "/score", body),
        )
    )
    pieces = [content[i : i + n_bytes] for i in range(0, len(content), n_bytes)]
    *answered, last = exchange(server.url, *pieces, LAST)
    assert ([reply.status for reply in answered], last.is_last) == ([200] * 3, True)


CHUNKS = {
    "a space after the size": b"%x \r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    "a size in C": b"0x%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY),
    "a negative size": b"-1\r\na\r\n0\r\n\r\n",
    "a size beyond 64 bits": b"1" + b"0" * 16 + b"\r\na\r\n0\r\n\r\n",
    "bare line feeds": b"%x\n%s\n0\n\n" % (len(BODY), BODY),
    "more than the size": b"1\r\n%s\r\n0\r\n\r\n" % BODY,
    "no end of a chunk": b"%x\r\n%s0\r\n\r\n" % (len(BODY), BODY),
}


@pytest.mark.parametrize("name", CHUNKS)
def test_chunks_that_could_mean_two_things_end_the_connection(server, name):
    reply = refused(server, request("POST", "/score", framing=CHUNKED), CHUNKS[name] + SMUGGLED)
    assert (reply.status, reply.code) == (400, "invalid_http")


@pytest.mark.parametrize("broken", [AMBIGUOUS["two lengths"], request("POST", "/score", b"-1\r\n", framing=CHUNKED)])
def test_requests_before_a_broken_one_are_answered_first(server, broken):
    good = request("POST", "/score", BODY)
    *answered, last = exchange(server.url, good * 3 + broken + SMUGGLED, LAST)
    assert [reply.status for reply in answered] == [200] * 3
    assert (last.status, last.code, last.header("connection")) == (400, "invalid_http", "close")


def test_an_extension_of_a_chunk_is_ignored(server):
    for extension in (b";a=b", b';a="b"'):
        body = chunked(BODY, extension=extension)
        assert answered_once(server, request("POST", "/score", body, framing=CHUNKED)).status == 200


def test_an_absolute_target_is_read_as_the_rfc_has_it(server):
    reply = answered_once(server, request("POST", "http://localhost/score?run=a", BODY))
    assert reply.status == 200
    assert answered_once(server, request("GET", "http://localhost", b"")).status == 404


def test_http_1_0_needs_no_host_and_is_closed(server):
    for head in (b"GET /livez HTTP/1.0", b"GET /livez HTTP/1.0\r\nhost: localhost"):
        (only,) = exchange(server.url, head + b"\r\n\r\n")
        assert (only.status, only.header("connection")) == (200, "close")


def test_http_1_0_is_sent_no_interim_answer(server):
    head = b"POST /score HTTP/1.0\r\nexpect: 100-continue\r\ncontent-type: application/json\r\n"
    received = received_from(server.url, head + b"content-length: %d\r\n\r\n" % len(BODY) + BODY)
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")

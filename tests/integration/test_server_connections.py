"""Clients that are slow on purpose: every connection has an ending, and honest clients do not notice."""

from __future__ import annotations

import json
import os
import socket
from contextlib import ExitStack

import pytest

from tests.integration.test_server_intake import answer, connection, is_closed
from tests.support.service_server import Server, drill, wait_until

HEAD_S, LIMIT = 1.0, 12
BODY = json.dumps({"samples": [{"text": "x"}]}).encode()
REQUEST = b"POST /score HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(BODY) + BODY


@pytest.fixture(scope="module")
def server():
    limits = f"--head-timeout-s={HEAD_S}", "--keep-alive-s=2", "--body-timeout-s=2", f"--max-connections={LIMIT}"
    with Server("--backend=echo", *limits) as running:
        yield running


@pytest.fixture
def raw(server):
    with connection(server) as opened:
        yield opened


def ended(server, why):
    return server.metric("rewardserve_connections_ended_total", reason=why)


def ask(server):
    with connection(server) as honest:
        honest.sendall(REQUEST)
        return answer(honest)


def drip(raw, data, every_s=0.05):
    """One byte after the other, until it is all there or there is something to read."""
    raw.settimeout(every_s)
    for i in range(len(data)):
        try:
            raw.sendall(data[i : i + 1])
            raw.recv(1, socket.MSG_PEEK)
            break
        except TimeoutError:
            continue
        except ConnectionError:
            break
    raw.settimeout(60.0)


# -- heads ------------------------------------------------------------------------------------------------------


def test_a_head_that_comes_byte_by_byte_is_refused_in_time_and_its_connection_closed(raw):
    drip(raw, REQUEST)
    status, headers, code = answer(raw)
    assert (status, code, headers["connection"]) == (408, "head_timeout", "close")
    assert is_closed(raw)


@pytest.mark.parametrize("first", [b"", b"\r\n", b"\r\n\r\n"])
def test_who_says_nothing_is_hung_up_on_without_a_word(raw, first):
    raw.sendall(first)
    assert is_closed(raw)


def test_the_second_head_of_a_connection_has_no_more_time_than_the_first(raw):
    raw.sendall(REQUEST)
    assert answer(raw)[0] == 200
    drip(raw, REQUEST)
    assert answer(raw)[::2] == (408, "head_timeout")
    assert is_closed(raw)


def test_empty_lines_do_not_keep_an_idle_connection(raw):
    raw.sendall(REQUEST)
    assert answer(raw)[0] == 200
    drip(raw, b"\r\n" * 100)
    assert is_closed(raw)


def test_a_connection_that_is_silent_between_requests_is_kept_for_a_while_and_then_closed(raw):
    for _ in range(2):
        raw.sendall(REQUEST)
        assert answer(raw)[0] == 200
    assert is_closed(raw)


def test_a_head_without_end_is_refused_however_fast_it_comes(raw):
    raw.sendall(b"GET /livez HTTP/1.1\r\nhost: localhost\r\nx: ")
    try:
        for _ in range(40):
            raw.sendall(b"a" * 65_536)
    except ConnectionError:
        return  # refused so soon that nobody read on
    assert answer(raw)[::2] == (431, "head_too_large")
    assert is_closed(raw)


def test_a_long_head_within_the_bound_is_read(raw):
    raw.sendall(REQUEST.replace(b"host: localhost", b"host: localhost\r\nx-long: " + b"a" * 60_000))
    assert answer(raw)[0] == 200


def test_what_is_no_http_is_refused_in_our_own_words(raw):
    raw.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 is how TLS begins\r\n\r\n")
    assert answer(raw)[::2] == (400, "invalid_http")
    assert is_closed(raw)


def test_two_requests_at_once_are_answered_in_order_and_the_half_of_a_third_is_not_waited_for(raw):
    raw.sendall(REQUEST + REQUEST + REQUEST[:20])
    assert [answer(raw)[0] for _ in range(2)] == [200, 200]
    assert answer(raw)[::2] == (408, "head_timeout")


def test_a_websocket_is_not_opened(raw):
    raw.sendall(
        b"GET /score HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
        b"sec-websocket-key: x\r\nsec-websocket-version: 13\r\n\r\n"
    )
    assert answer(raw)[::2] == (405, "method_not_allowed")


# -- too many ---------------------------------------------------------------------------------------------------


def test_beyond_the_limit_of_connections_the_silent_ones_are_closed(server):
    with ExitStack() as stack:
        silent = [stack.enter_context(connection(server)) for _ in range(3 * LIMIT)]
        for each in silent[::2]:
            each.sendall(b"POST /score HTT")
        assert [ask(server)[0] for _ in range(LIMIT)] == [200] * LIMIT
        assert ended(server, "evicted") >= 2 * LIMIT
        assert is_closed(silent[0])


def test_beyond_the_limit_connections_with_an_unfinished_body_are_closed_too(server):
    with ExitStack() as stack:
        slow = [stack.enter_context(connection(server)) for _ in range(LIMIT)]
        for each in slow:
            each.sendall(REQUEST[:-1])
        assert [ask(server)[0] for _ in range(LIMIT)] == [200] * LIMIT
        assert is_closed(slow[0])


def test_where_everybody_waits_for_an_answer_the_next_is_refused_in_words_and_told_to_come_again(tmp_path):
    n, gate = 3, str(tmp_path / "gate")
    os.mkfifo(gate)
    with drill(f"forward-waits:{gate}", f"--max-connections={n}") as server, ExitStack() as stack:
        busy = [stack.enter_context(connection(server)) for _ in range(n)]
        for each in busy:
            each.sendall(REQUEST)
        with open(gate, "wb"):

            def refusal():
                with connection(server) as late:
                    late.sendall(REQUEST)
                    return answer(late)

            status, headers, code = refusal()
            assert (status, code, headers["retry-after"], headers["connection"]) == (503, "overloaded", "1", "close")
        for each in busy:
            assert answer(each)[0] == 200
        assert ask(server)[0] == 200


# -- readers, and those who vanish --------------------------------------------------------------------------------


def test_who_does_not_read_the_answer_is_let_go_of(server):
    body = json.dumps({"samples": [{"id": "i" * 200 + str(i), "text": "x"} for i in range(1024)]}).encode()
    host, port = server.url.removeprefix("http://").split(":")
    before = ended(server, "slow_reader")
    with socket.socket() as reader:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        reader.connect((host, int(port)))
        request = b"POST /score HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n" % len(body) + body
        reader.sendall(request * 8)
        wait_until(lambda: ended(server, "slow_reader") == before + 1)
        assert ask(server)[0] == 200


def test_a_client_that_closes_its_half_has_disconnected_and_frees_its_capacity(tmp_path):
    os.mkfifo(tmp_path / "gate")
    with drill(
        f"forward-waits:{tmp_path / 'gate'}", "--admission.max-samples=1", "--max-samples-per-request=1"
    ) as server:
        with connection(server) as half:
            half.sendall(REQUEST)
            with open(tmp_path / "gate", "wb"):
                half.shutdown(socket.SHUT_WR)
                wait_until(lambda: server.metric("rewardserve_requests_total", route="/score", code="499") == 1)
        wait_until(lambda: server.score({"text": "next"}).status_code == 200)


# -- at the door of a full house --------------------------------------------------------------------------------


def test_under_overload_the_second_refusal_reads_no_body_and_is_like_the_first(tmp_path):
    gate = str(tmp_path / "gate")
    os.mkfifo(gate)
    flags = ["--admission.max-samples=1", "--max-samples-per-request=1", "--log-level=info"]
    with drill(f"forward-waits:{gate}", *flags) as server, connection(server) as inside, connection(server) as late:
        inside.sendall(REQUEST)
        with open(gate, "wb"):
            wait_until(lambda: server.metric("rewardserve_queue_samples") == 0)
            told = []
            for i in range(4):
                late.sendall(REQUEST.replace(b"host: localhost", b"host: localhost\r\nx-request-id: late-%d" % i))
                told.append(answer(late))
            assert [(status, code) for status, _, code in told] == [(503, "overloaded")] * 4
            assert [headers.pop("x-request-id") for _, headers, _ in told] == [f"late-{i}" for i in range(4)]
            assert all(int(headers["retry-after"]) >= 1 and "connection" not in headers for _, headers, _ in told)
            assert server.metric("rewardserve_requests_total", route="/score", code="503") == 4
        assert answer(inside)[0] == 200
        late.sendall(REQUEST)
        assert answer(late)[0] == 200
        server.signal()
        assert server.ended() == 0
        assert server.log.count("request_id=late-") == 1, "the others were turned away before the house"


def test_who_is_turned_away_and_wants_no_more_is_hung_up_on(tmp_path):
    gate = str(tmp_path / "gate")
    os.mkfifo(gate)
    with (
        drill(f"forward-waits:{gate}", "--admission.max-samples=1", "--max-samples-per-request=1") as server,
        connection(server) as inside,
    ):
        inside.sendall(REQUEST)
        with open(gate, "wb"):
            assert ask(server)[0] == 503
            with connection(server) as last:
                last.sendall(REQUEST.replace(b"host: localhost", b"host: localhost\r\nconnection: close"))
                status, headers, _ = answer(last)
                assert (status, headers["connection"]) == (503, "close")
                assert is_closed(last)
            with connection(server) as dripping:
                head, _, body = REQUEST.partition(b"\r\n\r\n")
                dripping.sendall(head + b"\r\n\r\n" + body[:5])
                dripping.sendall(body[5:])
                assert answer(dripping)[0] == 503
        assert answer(inside)[0] == 200

"""Keeping the head of an answer for its body changes how often is written, never what."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardserve.service.api.http.protocol import CoalescingTransport

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Transport:
    """Remembers what was written, and when it was closed."""

    def __init__(self):
        self.writes = []
        self.closed = False
        self.paused = False

    def write(self, data):
        assert not self.closed
        self.writes.append(bytes(data))

    def writelines(self, parts):
        self.write(b"".join(parts))

    def close(self):
        self.closed = True

    def is_closing(self):
        return self.closed

    def get_write_buffer_size(self):
        return 0

    def pause_reading(self):
        self.paused = True


class Soon:
    """An event loop that comes round when it is told to."""

    def __init__(self):
        self._calls = []

    def call_soon(self, call):
        self._calls.append(call)

    def come_round(self):
        calls, self._calls = self._calls, []
        for call in calls:
            call()


@pytest.fixture
def corked():
    transport, loop = Transport(), Soon()
    return CoalescingTransport(transport, loop, 30.0), transport, loop


def test_an_answer_is_one_write(corked):
    cork, transport, loop = corked
    cork.write(HEAD)
    assert transport.writes == []
    cork.write(b"{}")
    loop.come_round()
    assert transport.writes == [HEAD + b"{}"]


def test_a_head_whose_body_is_late_leaves_without_it(corked):
    cork, transport, loop = corked
    cork.write(HEAD)
    loop.come_round()
    cork.write(b"{}")
    assert transport.writes == [HEAD, b"{}"]


def test_who_waits_for_a_go_ahead_gets_it_at_once(corked):
    cork, transport, _ = corked
    cork.write(CONTINUE)
    assert transport.writes == [CONTINUE]


def test_what_was_kept_is_sent_before_the_end_and_not_after_it(corked):
    cork, transport, loop = corked
    cork.write(HEAD)
    cork.close()
    loop.come_round()
    assert (transport.writes, transport.closed) == ([HEAD], True)


def test_a_connection_that_is_lost_takes_the_head_with_it(corked):
    cork, transport, loop = corked
    cork.write(HEAD)
    transport.close()
    loop.come_round()
    assert transport.writes == []


def test_all_else_is_the_transports_own(corked):
    cork, transport, _ = corked
    cork.pause_reading()
    assert transport.paused
    assert cork.is_closing() is False


@given(st.lists(st.sampled_from([HEAD, CONTINUE, b"body", b"", b"HTTP/1.1 ", "turn"])))
def test_every_byte_is_written_once_and_in_order_by_the_next_turn_of_the_loop(steps):
    transport, loop = Transport(), Soon()
    cork, expected = CoalescingTransport(transport, loop, 30.0), b""
    for step in steps:
        if step == "turn":
            loop.come_round()
            assert b"".join(transport.writes) == expected
        else:
            cork.write(step)
            expected += step
            assert expected.startswith(b"".join(transport.writes))
    loop.come_round()
    assert b"".join(transport.writes) == expected


async def test_a_real_event_loop_will_do():
    transport = Transport()
    cork = CoalescingTransport(transport, asyncio.get_running_loop(), 30.0)
    cork.write(HEAD)
    await asyncio.sleep(0)
    assert transport.writes == [HEAD]

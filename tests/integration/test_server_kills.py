"""Servers that are ended in the middle of their work: who was accepted is answered, and no number is made up."""

from __future__ import annotations

import re
import signal

import pytest

from tests.support.load_clients import LoadClients
from tests.support.machine import in_test_faults
from tests.support.service_server import Server

CLIENTS = 32
BUSY = ["--backend=echo", "echo:delay_ms=5", "--batching.max-tokens=256", "--log-level=info"]
"""Batches of a few samples, so that many wait whenever the end comes."""


def answered_by(server):
    """Ids of the requests that the server says it answered with 200."""
    return set(re.findall(r"request_id=(\S+).*?route=/score.*?status=200", server.log))


@pytest.mark.parametrize("moment", [pytest.param(1, marks=in_test_faults), 40, pytest.param(300, marks=in_test_faults)])
def test_told_to_stop_under_load_every_accepted_request_is_answered(moment):
    with Server(*BUSY) as server, LoadClients(server.url, CLIENTS) as crowd:
        crowd.wait_for(moment)
        server.signal()
        assert server.ended() == 0
    book = crowd.book
    assert answered_by(server) == book.ids("answered"), "an answer was lost on its way"
    assert book.wrong == []
    assert set(book.counts) <= {"answered", "shutting_down", "broken", "unreachable"}
    assert book.counts["shutting_down"] > 0
    read = set(re.findall(r"request_id=(\S+)", server.log))
    assert not read & (book.ids("broken") | book.ids("unreachable")), "a request that was read got no answer"


@pytest.mark.parametrize("moment", [pytest.param(1, marks=in_test_faults), 100])
def test_killed_under_load_no_client_gets_a_number_that_was_not_scored(moment):
    with Server(*BUSY) as server, LoadClients(server.url, CLIENTS) as crowd:
        crowd.wait_for(moment)
        server.signal(signal.SIGKILL)
        assert server.ended() == -signal.SIGKILL
    assert crowd.book.wrong == []
    assert {"answered", "broken"} <= set(crowd.book.counts) <= {"answered", "broken", "unreachable"}


@in_test_faults
def test_after_a_kill_a_server_on_the_same_port_answers_those_who_come_again():
    with Server(*BUSY) as first, LoadClients(first.url, CLIENTS, gives_up=False) as crowd:
        crowd.wait_for(50)
        first.signal(signal.SIGKILL)
        first.ended()
        before = crowd.book.counts["answered"]
        with Server(*BUSY, port=int(first.url.rpartition(":")[2])):
            crowd.wait_for(before + 200)
    assert crowd.book.wrong == []

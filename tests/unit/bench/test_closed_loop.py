"""Clients that each send the next request after the last reply, against a server that can do anything."""

from __future__ import annotations

import asyncio
import itertools
import time

import httpx
import pytest

from rewardserve.bench import closed_loop as module
from rewardserve.bench.closed_loop import closed_loop, http_client


async def outcomes_of(handler, bodies, n_clients=2, until=float("inf")):
    found = {}
    async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as http:
        await closed_loop(http, "http://server/score", iter(bodies), n_clients, found.__setitem__, until=until)
    return found


async def test_every_body_is_sent_once_and_its_outcome_has_its_index():
    sent = []

    def handler(request):
        sent.append(request.content)
        return httpx.Response(200, content=b"reply to " + request.content)

    found = await outcomes_of(handler, [b"a", b"b", b"c"])
    assert sorted(sent) == [b"a", b"b", b"c"]
    assert {number: outcome.content for number, outcome in found.items()} == {
        0: b"reply to a", 1: b"reply to b", 2: b"reply to c"
    }  # fmt: skip


async def test_as_many_requests_as_clients_are_in_flight():
    in_flight, most = 0, 0

    async def handler(request):
        nonlocal in_flight, most
        in_flight += 1
        most = max(most, in_flight)
        for _ in range(5):
            await asyncio.sleep(0)
        in_flight -= 1
        return httpx.Response(200)

    await outcomes_of(handler, [b""] * 30, n_clients=3)
    assert most == 3


async def test_nothing_is_sent_after_the_end():
    assert await outcomes_of(lambda _: httpx.Response(200), itertools.repeat(b""), until=time.perf_counter() - 1) == {}


async def test_a_failed_request_is_an_outcome_and_is_not_sent_again(monkeypatch):
    monkeypatch.setattr(module, "_PAUSE_S", 0.0)
    sent = []

    def handler(request):
        sent.append(request.content)
        if request.content == b"a":
            raise httpx.ReadTimeout("too late", request=request)
        return httpx.Response(500, content=b"broken")

    found = await outcomes_of(handler, [b"a", b"b"])
    assert sorted(sent) == [b"a", b"b"]
    assert (found[0].status, found[0].error) == (0, "ReadTimeout")
    assert (found[1].status, found[1].error, found[1].content) == (500, "", b"broken")


@pytest.mark.parametrize(
    ("status", "header", "pause_s"),
    [(503, "3", 3.0), (429, "2", 2.0), (503, "Wed, 21 Oct 2026 07:28:00 GMT", 0.0), (503, None, 0.0), (200, "3", 0.0)],
)
async def test_a_client_that_is_told_to_wait_waits_and_others_do_not(monkeypatch, status, header, pause_s):
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    headers = {} if header is None else {"retry-after": header}
    found = await outcomes_of(lambda _: httpx.Response(status, headers=headers), [b""], n_clients=1)
    assert slept == [pause_s] * (pause_s > 0)
    assert found[0].retry_after_s == (pause_s or None)


async def test_a_key_is_sent_and_a_proxy_of_the_environment_only_where_it_is_wanted(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    async with http_client(1, headers={"authorization": "Bearer k"}, use_proxy=False) as http:
        assert http.headers["authorization"] == "Bearer k"
        assert not http._mounts
    async with http_client(1) as http:
        assert http._mounts

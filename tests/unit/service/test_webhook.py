"""An alarm arrives, signed and in order, or somebody is told that it did not."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json

import httpx
import pytest

from service.webhook import SIGNATURE_HEADER, TRIES, Webhook, sign
from tests.support.service_fakes import PATIENCE_S


class Receiver(httpx.AsyncBaseTransport):
    """Answers with these statuses, one after the other, and with 200 from then on. An exception is raised."""

    def __init__(self, *answers):
        self.answers, self.requests = list(answers), []

    async def handle_async_request(self, request):
        self.requests.append(request)
        answer = self.answers.pop(0) if self.answers else 200
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer)

    @property
    def heard(self):
        return [json.loads(request.content)["wire"] for request in self.requests]


async def told(receiver, *wires, secret=b"s3cret", until=None):
    """The alarms that were lost."""
    lost = []
    webhook = Webhook(
        "http://receiver/x", secret, lambda *each: lost.append(each), transport=receiver, first_pause_s=0.0
    )
    webhook.start()
    for wire in wires:
        webhook.tell({"wire": wire})
    await asyncio.wait_for(webhook.stop(), PATIENCE_S)
    return lost


async def test_alarms_arrive_in_order_and_signed():
    receiver = Receiver()
    assert await told(receiver, "a", "b") == []
    assert receiver.heard == ["a", "b"]
    for request in receiver.requests:
        expected = hmac.new(b"s3cret", request.content, hashlib.sha256).hexdigest()
        assert request.headers[SIGNATURE_HEADER] == f"sha256={expected}" == sign(request.content, b"s3cret")


async def test_without_a_secret_nothing_is_signed():
    receiver = Receiver()
    await told(receiver, "a", secret=None)
    assert SIGNATURE_HEADER not in receiver.requests[0].headers


@pytest.mark.parametrize(
    "trouble",
    [503, 429, 408, httpx.ConnectError("no"), httpx.ReadTimeout("slow"), RuntimeError("can't start new thread")],
)
async def test_a_receiver_in_trouble_is_told_again(trouble):
    receiver = Receiver(trouble, trouble)
    assert await told(receiver, "a", "b") == []
    assert receiver.heard == ["a", "a", "a", "b"]


async def test_a_receiver_that_refuses_is_not_asked_again():
    receiver = Receiver(404)
    assert await told(receiver, "a", "b") == [({"wire": "a"}, "the receiver answered 404")]
    assert receiver.heard == ["a", "b"]


async def test_after_so_many_tries_an_alarm_is_lost_and_the_next_one_delivered():
    receiver = Receiver(*[500] * TRIES)
    assert await told(receiver, "a", "b") == [({"wire": "a"}, "the receiver answered 500")]
    assert receiver.heard == ["a"] * TRIES + ["b"]


async def test_too_many_are_dropped_from_the_oldest_on(monkeypatch):
    monkeypatch.setattr("service.webhook._MOST_WAITING", 2)
    receiver = Receiver()
    lost = await told(receiver, "a", "b", "c")
    assert [alarm["wire"] for alarm, _ in lost] == ["a"]
    assert receiver.heard == ["b", "c"]


async def test_what_is_left_at_the_end_is_said(monkeypatch):
    monkeypatch.setattr("service.webhook._LAST_WORDS_S", 0.05)

    class Deaf(httpx.AsyncBaseTransport):
        async def handle_async_request(self, request):
            await asyncio.sleep(PATIENCE_S)

    assert await told(Deaf(), "a", "b") == [({"wire": w}, "the server ended") for w in "ab"]

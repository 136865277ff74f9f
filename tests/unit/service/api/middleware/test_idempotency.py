"""A repeated key: the same answer, asked for once; a refusal is no answer; nobody gets another's."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from starlette.requests import Request
from starlette.responses import Response

from rewardserve.service.api.deadline import read_deadline
from rewardserve.service.api.middleware.idempotency import Idempotency
from rewardserve.service.errors import DeadlineExceeded, InvalidRequest, KeyReused, Overloaded
from rewardserve.service.tripwires.run_context import RunContext
from tests.support.service_fakes import PATIENCE_S, StillClock


def request(key="k", body=b"{}", path="/score", query=b"", sender=None, **others):
    headers = [(b"idempotency-key", key.encode())] if key is not None else []
    headers += [(name.replace("_", "-").encode(), value) for name, value in others.items()]
    headers += [(b"authorization", sender)] if sender else []

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {"type": "http", "method": "POST", "path": path, "query_string": query, "headers": headers}
    return Request(scope, receive)


class Counting:
    """Answers with how often it was asked."""

    def __init__(self, status=200, size=1):
        self.n, self._status, self._size = 0, status, size

    async def __call__(self, _request):
        self.n += 1
        return Response(str(self.n).rjust(self._size), self._status)


async def test_a_repeat_gets_the_first_answer_and_says_so():
    store, answer = Idempotency(StillClock()), Counting()
    first, again = await store.run_once(request(), answer), await store.run_once(request(), answer)
    assert (first.body, again.body, answer.n) == (b"1", b"1", 1)
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers


@pytest.mark.parametrize(
    "other",
    [
        {"key": "other"},
        {"path": "/compare"},
        {"query": b"run=a"},
        {"sender": b"Bearer b"},
        {"key": None},
        {"x_run": b"a"},
        {"x_step": b"1"},
        {"x_model_digest": b"sha256:0"},
    ],
)
async def test_another_key_sender_or_route_is_another_request(other):
    store, answer = Idempotency(StillClock()), Counting()
    await store.run_once(request(), answer)
    assert (await store.run_once(request(**other), answer)).body == b"2"


async def test_a_repeat_names_the_model_as_the_first_answer_did():
    async def answer(_request):
        return Response("1", headers={"x-model-name": "rm", "content-language": "en"})

    store = Idempotency(StillClock())
    await store.run_once(request(), answer)
    again = await store.run_once(request(), answer)
    assert (again.headers["x-model-name"], again.headers["idempotency-replayed"]) == ("rm", "true")
    assert "content-language" not in again.headers


async def test_a_key_belongs_to_its_body():
    store, answer = Idempotency(StillClock()), Counting()
    await store.run_once(request(), answer)
    with pytest.raises(KeyReused):
        await store.run_once(request(body=b"[]"), answer)
    assert answer.n == 1


@pytest.mark.parametrize("key", ["", "x" * 256])
async def test_a_key_has_a_bound(key):
    with pytest.raises(InvalidRequest):
        await Idempotency(StillClock()).run_once(request(key), Counting())


async def test_a_refusal_is_not_remembered():
    store, answer = Idempotency(StillClock()), Counting(status=503)
    assert [(await store.run_once(request(), answer)).body for _ in range(2)] == [b"1", b"2"]

    async def refuse(_request):
        raise Overloaded("later")

    with pytest.raises(Overloaded):
        await store.run_once(request("b"), refuse)
    assert (await store.run_once(request("b"), Counting())).body == b"1"


async def test_an_answer_that_is_not_final_is_not_remembered():
    store, finality = Idempotency(StillClock()), iter([False, True])

    async def answer(asked):
        asked.scope["state"] = {"is_final": next(finality)}
        return Response(str(asked.scope["state"]["is_final"]))

    assert [(await store.run_once(request(), answer)).body for _ in range(3)] == [b"False", b"True", b"True"]


async def test_a_repeat_joins_the_first_while_it_is_being_answered():
    store, gate, begun, asked = Idempotency(StillClock()), asyncio.Event(), asyncio.Event(), []

    async def slow(_request):
        asked.append(1)
        begun.set()
        await gate.wait()
        return Response("done")

    both = [asyncio.create_task(store.run_once(request(), slow)) for _ in range(3)]
    await begun.wait()
    other_body = request(body=b"[]")
    with pytest.raises(KeyReused):
        await store.run_once(other_body, slow)
    gate.set()
    assert [answer.body for answer in await asyncio.gather(*both)] == [b"done"] * 3
    assert len(asked) == 1


async def test_a_repeat_waits_for_the_first_no_longer_than_its_own_deadline():
    store, gate, begun = Idempotency(StillClock()), asyncio.Event(), asyncio.Event()

    async def slow(_request):
        begun.set()
        await gate.wait()
        return Response("done")

    first = asyncio.create_task(store.run_once(request(), slow))
    await begun.wait()
    with pytest.raises(DeadlineExceeded):
        await asyncio.wait_for(store.run_once(request(x_deadline_ms=b"20"), Counting()), PATIENCE_S)
    patient = asyncio.create_task(store.run_once(request(x_deadline_ms=b"99999999999"), Counting()))
    await asyncio.sleep(0)
    gate.set()
    assert [(await each).body for each in (first, patient)] == [b"done"] * 2


async def test_a_deadline_counts_from_the_arrival_of_a_repeat_and_not_from_its_turn():
    clock, asked = StillClock(), request(x_deadline_ms=b"500")
    store, begun = Idempotency(clock), asyncio.Event()

    async def for_ever(_request):
        begun.set()
        await asyncio.Event().wait()

    async def deadline(of):
        return Response(str(read_deadline(of, clock)))

    first = asyncio.create_task(store.run_once(request(), for_ever))
    await begun.wait()
    repeat = asyncio.create_task(store.run_once(asked, deadline))
    await asyncio.sleep(0)
    clock.advance(0.25)
    first.cancel()
    assert (await repeat).body == b"1000.5"


async def test_a_repeat_asks_itself_when_the_first_was_given_up():
    store, begun = Idempotency(StillClock()), asyncio.Event()

    async def for_ever(_request):
        begun.set()
        await asyncio.Event().wait()

    first = asyncio.create_task(store.run_once(request(), for_ever))
    await begun.wait()
    second = asyncio.create_task(store.run_once(request(), Counting()))
    await asyncio.sleep(0)
    first.cancel()
    assert (await second).body == b"1"


async def test_answers_are_forgotten_by_age_and_by_bytes():
    clock = StillClock()
    store, answer = Idempotency(clock, max_age_s=10.0), Counting()
    await store.run_once(request(), answer)
    clock.advance(10.1)
    assert (await store.run_once(request(), answer)).body == b"2"

    store, answer = Idempotency(clock, max_bytes=10_000), Counting(size=4_000)
    for key in "abc":
        await store.run_once(request(key), answer)
    assert (await store.run_once(request("c"), answer)).body.strip() == b"3"
    assert (await store.run_once(request("a"), answer)).body.strip() == b"4"


async def test_an_answer_to_a_run_that_was_blocked_meanwhile_is_not_given_again():
    blocked, answer = set(), Counting()
    store = Idempotency(StillClock(), blocked_runs=SimpleNamespace(is_blocked=lambda context: context.run in blocked))

    def of_run(run):
        asked = request()
        asked.scope["state"] = {"run_context": RunContext(run)}
        return asked

    await store.run_once(of_run("ppo-7"), answer)
    blocked.add("ppo-7")
    assert [(await store.run_once(of_run("ppo-7"), answer)).body for _ in range(2)] == [b"2", b"3"], (
        "a refusal is not remembered"
    )
    blocked.clear()
    assert (await store.run_once(of_run("ppo-7"), answer)).body == b"1", "the alert was acknowledged"

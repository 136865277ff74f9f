"""Nobody works for a caller who has left, and everybody else's cancellation stays what it is."""

from __future__ import annotations

import asyncio
import gc

import pytest
from starlette.requests import Request

from rewardserve.service.api.http import disconnects
from rewardserve.service.api.http.disconnects import cancel_on_disconnect
from rewardserve.service.errors import ClientDisconnected, DeadlineExceeded


class Caller:
    """Its request, and a way to hang up."""

    def __init__(self):
        self._left = asyncio.Event()
        self.is_watched = asyncio.Event()
        self.request = Request({"type": "http"}, self._receive)

    def hang_up(self):
        self._left.set()

    async def _receive(self):
        self.is_watched.set()
        await self._left.wait()
        return {"type": "http.disconnect"}


@pytest.fixture(autouse=True)
def watched_at_once(monkeypatch):
    monkeypatch.setattr(disconnects, "_WATCH_DELAY_S", 0.0)


@pytest.fixture
async def caller():
    yield Caller()
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == {asyncio.current_task()}, "somebody is still there"


class Work:
    """Waits until it is let go, and knows whether it was cancelled."""

    def __init__(self):
        self.was_cancelled = False
        self._go = asyncio.Event()

    def finish(self):
        self._go.set()

    async def __call__(self):
        try:
            await self._go.wait()
        except asyncio.CancelledError:
            self.was_cancelled = True
            raise
        return "answer"


async def test_who_hangs_up_ends_the_work(caller):
    work = Work()
    answer = asyncio.ensure_future(cancel_on_disconnect(caller.request, work()))
    await caller.is_watched.wait()
    caller.hang_up()
    with pytest.raises(ClientDisconnected):
        await answer
    assert work.was_cancelled


async def test_who_stays_is_answered_and_watched_no_more(caller):
    work = Work()
    answer = asyncio.ensure_future(cancel_on_disconnect(caller.request, work()))
    await caller.is_watched.wait()
    work.finish()
    assert await answer == "answer"


async def test_an_error_of_the_work_reaches_the_caller(caller):
    async def late():
        raise DeadlineExceeded("too late")

    with pytest.raises(DeadlineExceeded):
        await cancel_on_disconnect(caller.request, late())


async def test_a_cancellation_from_outside_is_not_taken_for_a_caller_who_left(caller):
    work = Work()
    answer = asyncio.ensure_future(cancel_on_disconnect(caller.request, work()))
    await caller.is_watched.wait()
    answer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answer
    assert work.was_cancelled


async def test_both_at_once_are_a_cancellation(caller):
    answer = asyncio.ensure_future(cancel_on_disconnect(caller.request, Work()()))
    await caller.is_watched.wait()
    caller.hang_up()
    for _ in range(2):  # the watcher has seen it, and struck; the work has not been told yet
        await asyncio.sleep(0)
    answer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answer
    assert answer.cancelled()


@pytest.mark.parametrize("n_steps", range(6))
async def test_an_answer_that_comes_while_the_caller_hangs_up_is_not_cancelled_afterwards(caller, n_steps):
    """Whichever comes first by a step or two: nothing strikes once the answer is there."""
    work = Work()
    told = []

    async def answer_and_send():
        try:
            told.append(await cancel_on_disconnect(caller.request, work()))
        except ClientDisconnected:
            told.append("left")
        for _ in range(6):
            await asyncio.sleep(0)  # sending; a cancellation would be raised here
        assert asyncio.current_task().cancelling() == 0

    sending = asyncio.ensure_future(answer_and_send())
    await caller.is_watched.wait()
    caller.hang_up()
    for _ in range(n_steps):
        await asyncio.sleep(0)
    work.finish()
    await sending
    assert told in (["answer"], ["left"])


async def test_an_answer_leaves_nothing_for_the_garbage_collector(caller):
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            work = Work()
            answer = asyncio.ensure_future(cancel_on_disconnect(caller.request, work()))
            await caller.is_watched.wait()
            await asyncio.sleep(0.001)
            work.finish()
            await answer
            del answer
            await asyncio.sleep(0)
        assert gc.collect() < 20
    finally:
        gc.enable()

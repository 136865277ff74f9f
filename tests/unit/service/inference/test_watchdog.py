"""Detection of a hanging scorer, and the errors of the waiting requests."""

from __future__ import annotations

import asyncio
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardserve.model.backends.echo import echo_score
from rewardserve.service.errors import ScorerHanging, ShuttingDown
from rewardserve.service.inference.outcomes import RowScored
from rewardserve.service.inference.watchdog import LOST_AFTER, Watchdog
from tests.support.service_fakes import PATIENCE_S, GatedScorer

DOG = Watchdog(10.0)
ROWS = [(i, i + 1, i + 2) for i in range(10)]


# -- the decision -----------------------------------------------------------------------------------------------


def after(dog, times):
    for now in times:
        dog = dog.observed_at(now)
    return dog


@pytest.mark.parametrize(
    ("age_s", "state"), [(0, "healthy"), (9.9, "healthy"), (10, "hanging"), (29, "hanging"), (30, "lost")]
)
def test_a_forward_hangs_from_the_timeout_on_and_is_lost_at_three_times_that(age_s, state):
    assert LOST_AFTER == 3
    dog = Watchdog(10.0, observed_s=100.0 + age_s)
    assert dog.state([105.0, 100.0], 1) == (state if age_s >= 5 else "healthy")
    assert dog.state([100.0], 1) == state
    assert Watchdog(10.0, observed_s=100.0 + 8 * age_s).state([100.0], 8) == state, (
        "eight at a time wait for one another"
    )


def test_nothing_under_way_never_hangs_nor_does_anything_without_a_timeout():
    assert Watchdog(10.0, observed_s=1e9).state([], 1) == "healthy"
    assert Watchdog(math.inf, observed_s=1e9).state([0.0], 1) == "healthy"


def test_its_clock_is_the_time_that_it_was_awake():
    dog = after(DOG, [1000.0 + k for k in range(6)])
    assert dog.observed_s == pytest.approx(5.0)
    suspended = dog.observed_at(1005.0 + 3600.0)
    assert suspended.observed_s == pytest.approx(5.0 + 2.0), "two looks' worth of an hour's sleep"
    assert suspended.state([0.0], 1) == "healthy"
    assert after(suspended, [4605.0 + k for k in range(1, 4)]).state([0.0], 1) == "hanging", "and then it goes on"


@given(steps=st.lists(st.floats(0.0, 1e6), max_size=30), began=st.integers(0, 29))
def test_whatever_time_does_a_forward_is_given_at_least_its_timeout_by_the_clock(steps, began):
    now, dog, begun_at, begun = 0.0, DOG.observed_at(0.0), None, None
    for i, step in enumerate(steps):
        now += step
        dog = dog.observed_at(now)
        if i == began:
            begun_at, begun = now, dog.observed_s
    if begun is not None and dog.state([begun], 1) != "healthy":
        assert now - begun_at >= DOG.timeout_s - 1e-6


# -- what the batcher makes of it -------------------------------------------------------------------------------


async def turns(n=20):
    for _ in range(n):
        await asyncio.sleep(0)


async def pass_time(batcher, seconds):
    """Advance in steps of a process that is not suspended."""
    for _ in range(round(seconds)):
        batcher.clock.advance(1.0)
        await turns()


def raw(outcomes):
    assert all(isinstance(o, RowScored) for o in outcomes), outcomes
    return [o.heads["score"] for o in outcomes]


@pytest.fixture
def watched(drive):
    def build(scorer, **kwargs):
        states = []
        batcher = drive(scorer, watchdog=DOG, on_state=states.append, **kwargs)
        batcher.states = states
        return batcher

    return build


async def held(batcher, scorer):
    """One request in a hanging forward, one that waits for the next, and one with the same row."""
    tasks = [asyncio.create_task(batcher.score(ROWS[:1]))]
    await scorer.entered()
    tasks += [asyncio.create_task(batcher.score(rows)) for rows in (ROWS[1:3], ROWS[:1])]
    await turns()
    return tasks


async def test_waiting_and_new_requests_are_refused_while_a_forward_hangs(watched):
    scorer = GatedScorer()
    batcher = watched(scorer)
    tasks = await held(batcher, scorer)
    await pass_time(batcher, 9)
    assert not any(task.done() for task in tasks)
    assert batcher.scorer_state == "healthy"
    await pass_time(batcher, 2)
    for task in tasks:
        with pytest.raises(ScorerHanging) as refused:
            await asyncio.wait_for(task, PATIENCE_S)
        assert refused.value.retry_after_s > 0
    with pytest.raises(ScorerHanging):
        await batcher.score(ROWS[5:6])
    assert batcher.n_samples == 0
    await pass_time(batcher, 20)
    assert batcher.states == ["hanging", "lost"]


@pytest.mark.parametrize(("seconds", "states"), [(15, ["hanging", "healthy"]), (45, ["hanging", "lost", "healthy"])])
async def test_when_the_forward_comes_back_all_is_well_again(watched, seconds, states):
    scorer = GatedScorer()
    batcher = watched(scorer, n_cached=10)
    tasks = await held(batcher, scorer)
    await pass_time(batcher, seconds)
    await asyncio.gather(*tasks, return_exceptions=True)
    scorer.gate.set()
    await asyncio.wait(batcher._in_flight)
    assert (batcher.scorer_state, batcher.states) == ("healthy", states)
    assert raw(await batcher.score(ROWS)) == [echo_score(r) for r in ROWS]
    assert [len(b) for b in scorer.batches] == [1, 9], "what came back late is remembered"


async def test_many_short_forwards_are_no_long_one(watched):
    scorer = GatedScorer()
    scorer.gate.set()
    batcher = watched(scorer)
    for i in range(30):
        await batcher.score([(i,)])
        await pass_time(batcher, 1)
    assert batcher.states == []


async def test_a_hanging_forward_does_not_keep_a_server_from_ending(watched):
    for is_closed_first in (True, False):
        scorer = GatedScorer()
        batcher = watched(scorer)
        tasks = await held(batcher, scorer)
        if is_closed_first:
            stopping = asyncio.create_task(batcher.stop())
            await pass_time(batcher, 11)
        else:
            await pass_time(batcher, 11)
            stopping = asyncio.create_task(batcher.stop())
        await asyncio.wait_for(stopping, PATIENCE_S)
        for task in tasks:
            with pytest.raises((ScorerHanging, ShuttingDown)):
                await task


async def test_of_two_forwards_each_may_wait_for_the_other(watched):
    scorer = GatedScorer()
    batcher = watched(scorer, max_tokens=3, concurrency=2)
    tasks = [asyncio.create_task(batcher.score([row])) for row in ROWS[:3]]
    for _ in range(2):
        await scorer.entered()
    await pass_time(batcher, 19)
    assert batcher.states == []
    await pass_time(batcher, 2)
    assert batcher.states == ["hanging"]
    await asyncio.gather(*tasks, return_exceptions=True)

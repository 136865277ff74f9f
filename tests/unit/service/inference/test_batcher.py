"""The batcher, driven by scorers that do what a scorer should not."""

from __future__ import annotations

import asyncio
import math

import pytest

from rewardserve.model.backends.echo import echo_score
from rewardserve.model.scorer import OutOfMemory, ScorerError
from rewardserve.service.errors import (
    BatcherStopped,
    DeadlineExceeded,
    OutOfMemoryForRow,
    ScoreNotFinite,
    ScorerBug,
    ScorerFailed,
    ShuttingDown,
)
from rewardserve.service.inference.batch_size import BatchSizeController
from rewardserve.service.inference.batcher import FAILING_AFTER, Batcher
from rewardserve.service.inference.outcomes import RowScored
from rewardserve.service.inference.planner import BatchLimits, batch_cost
from tests.support.service_fakes import (
    PATIENCE_S,
    FakeScorer,
    GatedScorer,
    InferenceLog,
    SharingScorer,
    StillClock,
    Untrue,
    no_memory_above,
    one_too_few,
    poisoned_by,
    scores_with,
)

ROWS = [(i, i + 1, i + 2) for i in range(10)]
IS_BAD = ROWS[3].__eq__


def raw(outcome):
    assert isinstance(outcome, RowScored), outcome
    return outcome.heads["score"]


async def begun(work):
    """A task that has run up to its first wait."""
    task = asyncio.create_task(work)
    await asyncio.sleep(0)
    return task


async def test_every_row_gets_its_own_score_in_order(drive):
    batcher = drive(FakeScorer())
    assert [raw(o) for o in await batcher.score(ROWS)] == [echo_score(r) for r in ROWS]
    assert [b.outcome for b in batcher.told] == ["ok"]


async def test_rows_that_arrive_during_a_forward_are_in_the_next_batch(drive):
    scorer = GatedScorer()
    batcher = drive(scorer)
    first = await begun(batcher.score(ROWS[:1]))
    await scorer.entered()
    others = [await begun(batcher.score([row])) for row in ROWS[1:]]
    assert batcher.n_samples == 9
    scorer.gate.set()
    answers = [raw((await task)[0]) for task in (first, *others)]
    assert answers == [echo_score(r) for r in ROWS]
    assert [len(b) for b in scorer.batches] == [1, 9]


async def test_company_that_is_on_its_way_is_waited_for_until_it_is_there(drive):
    scorer = FakeScorer()
    batcher = drive(scorer, linger_s=5.0)
    with batcher.expecting(1):
        early = await begun(batcher.score(ROWS[:1]))
        await asyncio.sleep(0)
        assert batcher.n_samples == 1
    late = await begun(batcher.score(ROWS[1:2]))
    await asyncio.gather(early, late)
    assert [len(b) for b in scorer.batches] == [2]


async def test_company_that_does_not_come_is_waited_for_no_longer_than_the_linger(drive):
    batcher = drive(FakeScorer(), linger_s=5.0)
    with batcher.expecting(1):
        task = await begun(batcher.score(ROWS[:1]))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not task.done()
        batcher.clock.advance(5.0)
        assert raw((await task)[0]) == echo_score(ROWS[0])


async def test_a_deadline_during_the_linger_is_refused_in_time(drive):
    batcher = drive(FakeScorer(), linger_s=5.0)
    with batcher.expecting(1):
        late = await begun(batcher.score(ROWS[:1], batcher.clock.now() + 1.0))
        for _ in range(20):
            await asyncio.sleep(0)
        batcher.clock.advance(1.0)
        with pytest.raises(DeadlineExceeded):
            await asyncio.wait_for(late, PATIENCE_S)
    assert batcher.told == []


async def test_out_of_memory_halves_the_batch_and_lowers_the_budget(drive):
    scorer = FakeScorer(no_memory_above(3))
    batcher = drive(scorer)
    assert [raw(o) for o in await batcher.score(ROWS)] == [echo_score(r) for r in ROWS]
    assert batcher.limits.max_tokens == batch_cost([3] * 5, pads_rows=True) // 2
    scorer.batches.clear()
    assert [raw(o) for o in await batcher.score(ROWS)] == [echo_score(r) for r in ROWS]
    assert max(map(len, scorer.batches)) <= 3, "a batch that did not fit once was tried again"


async def test_a_row_that_does_not_fit_alone_has_its_own_error(drive):
    batcher = drive(FakeScorer(poisoned_by(IS_BAD, OutOfMemory("no"))))
    outcomes = await batcher.score(ROWS)
    assert isinstance(outcomes[3], OutOfMemoryForRow)
    assert [raw(o) for i, o in enumerate(outcomes) if i != 3] == [echo_score(r) for r in ROWS if not IS_BAD(r)]


@pytest.mark.parametrize("error", [ScorerError("boom"), RuntimeError("boom"), StopIteration("boom"), SystemExit(3)])
async def test_the_failure_of_a_row_does_not_fail_its_neighbours(drive, error):
    batcher = drive(FakeScorer(poisoned_by(IS_BAD, error)))
    outcomes = await batcher.score(ROWS)
    assert isinstance(outcomes[3], ScorerFailed)
    assert "boom" not in outcomes[3].message
    assert [raw(o) for i, o in enumerate(outcomes) if i != 3] == [echo_score(r) for r in ROWS if not IS_BAD(r)]


async def test_a_broken_backend_is_not_asked_without_end(drive):
    scorer = FakeScorer(poisoned_by(lambda row: True))
    batcher = drive(scorer)
    rows = [(i,) for i in range(512)]
    outcomes = await batcher.score(rows)
    assert all(isinstance(o, ScorerFailed) for o in outcomes)
    assert len(scorer.batches) < 60


async def fail(batcher, times):
    for _ in range(times):
        await batcher.score(ROWS[3:4])


@pytest.mark.parametrize(
    "behave", [poisoned_by(IS_BAD), poisoned_by(IS_BAD, SystemExit(3)), scores_with(math.nan, IS_BAD)]
)
async def test_batch_after_batch_without_a_score_is_a_failing_scorer_until_one_row_is_scored(drive, behave):
    batcher = drive(FakeScorer(behave))
    await fail(batcher, FAILING_AFTER - 1)
    assert batcher.n_failed_batches == 0
    await fail(batcher, 1)
    assert batcher.n_failed_batches == FAILING_AFTER
    await batcher.score(ROWS)  # one bad row among good ones
    assert batcher.n_failed_batches == 0
    await fail(batcher, FAILING_AFTER - 1)
    assert batcher.n_failed_batches == 0, "a success counts from the beginning"


async def test_a_single_batch_of_many_bad_rows_is_no_failing_scorer(drive):
    """Finding them takes more failed forwards than there may be failed batches."""
    batcher = drive(FakeScorer(poisoned_by(lambda row: row[0] < 40)))
    await batcher.score([(i + 1,) for i in range(64)])
    assert [b.outcome for b in batcher.told].count("failed") > FAILING_AFTER
    assert batcher.n_failed_batches == 0


async def test_a_failing_scorer_without_requests_becomes_ready_again(drive):
    batcher = drive(FakeScorer(poisoned_by(IS_BAD)))
    await fail(batcher, FAILING_AFTER)
    batcher.clock.advance(29.9)
    assert batcher.n_failed_batches == FAILING_AFTER
    batcher.clock.advance(0.1)
    assert batcher.n_failed_batches == 0
    await fail(batcher, 1)
    assert batcher.n_failed_batches == FAILING_AFTER + 1, "one more failure is enough then"


async def test_one_score_too_few_fails_all_and_is_not_tried_again(drive):
    scorer = FakeScorer(one_too_few)
    outcomes = await drive(scorer).score(ROWS)
    assert all(isinstance(o, ScorerBug) and o.details == {"n_scores": 9, "n_rows": 10} for o in outcomes)
    assert len(scorer.batches) == 1


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
async def test_a_score_that_is_no_number_is_an_error_of_that_row(drive, value):
    outcomes = await drive(FakeScorer(scores_with(value, IS_BAD))).score(ROWS)
    assert [isinstance(o, ScoreNotFinite) for o in outcomes] == [IS_BAD(r) for r in ROWS]


async def test_a_row_that_is_no_scores_at_all_is_a_bug_of_the_backend(drive):
    def none_for_all(batch):
        from rewardserve.model.scorer import BatchScores

        return BatchScores((None,) * len(batch), 0)

    assert all(isinstance(o, ScorerBug) for o in await drive(FakeScorer(none_for_all)).score(ROWS))


async def test_a_request_cancelled_in_the_queue_is_never_scored(drive):
    scorer = GatedScorer()
    batcher = drive(scorer)
    in_flight = await begun(batcher.score(ROWS[:1]))
    await scorer.entered()
    leaving, staying = await begun(batcher.score(ROWS[1:3])), await begun(batcher.score(ROWS[3:4]))
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert batcher.n_samples == 1
    scorer.gate.set()
    await asyncio.gather(in_flight, staying)
    assert [b.rows for b in scorer.batches] == [(ROWS[0],), (ROWS[3],)]


async def test_a_request_cancelled_during_the_batch_does_not_affect_the_others(drive):
    scorer = GatedScorer()
    batcher = drive(scorer)
    blocker = await begun(batcher.score(ROWS[:1]))
    await scorer.entered()
    leaving, staying = await begun(batcher.score(ROWS[1:2])), await begun(batcher.score(ROWS[2:3]))
    scorer.gate.set()
    await blocker
    leaving.cancel()
    assert raw((await staying)[0]) == echo_score(ROWS[2])
    await asyncio.gather(leaving, return_exceptions=True)


async def test_a_deadline_in_the_queue_is_refused_and_never_scored(drive):
    scorer = GatedScorer()
    batcher = drive(scorer)
    in_flight = await begun(batcher.score(ROWS[:1]))
    await scorer.entered()
    late = await begun(batcher.score(ROWS[1:2], batcher.clock.now() + 1.0))
    batcher.clock.advance(1.0)
    scorer.gate.set()
    with pytest.raises(DeadlineExceeded):
        await late
    await in_flight
    assert [b.rows for b in scorer.batches] == [(ROWS[0],)]


async def test_stop_answers_everything_accepted_and_refuses_the_rest(drive):
    scorer = GatedScorer()
    batcher = drive(scorer, max_tokens=3)
    accepted = [await begun(batcher.score([row])) for row in ROWS]
    await scorer.entered()
    stopping = await begun(batcher.stop())
    with pytest.raises(ShuttingDown):
        await batcher.score(ROWS[:1])
    scorer.gate.set()
    assert [raw((await task)[0]) for task in accepted] == [echo_score(r) for r in ROWS]
    await stopping


async def test_abort_refuses_what_is_left_and_does_not_wait_for_the_forward(drive):
    scorer = GatedScorer()
    batcher = drive(scorer)
    in_flight = await begun(batcher.score(ROWS[:1]))
    await scorer.entered()
    waiting = await begun(batcher.score(ROWS[1:2]))
    await batcher.abort()
    for task in (in_flight, waiting):
        with pytest.raises(ShuttingDown):
            await task


async def test_when_the_batching_task_ends_all_requests_get_an_error(drive):
    scorer = FakeScorer()
    scorer.pads_rows = Untrue()
    batcher = drive(scorer)
    for _ in range(2):
        with pytest.raises(BatcherStopped):
            await asyncio.wait_for(batcher.score(ROWS), PATIENCE_S)
    assert not batcher.is_alive
    assert [b.outcome for b in batcher.told] == ["bug"]


async def test_broken_metrics_hang_no_request():
    def broken(_done):
        raise KeyError("no such metric")

    batcher = Batcher(FakeScorer(), BatchLimits(1000, 0.0), StillClock(), InferenceLog(on_batch=broken))
    batcher.start()
    await asyncio.wait_for(batcher.score(ROWS), PATIENCE_S)
    with pytest.raises(BatcherStopped):
        await asyncio.wait_for(batcher.score(ROWS), PATIENCE_S)
    await batcher.stop()


async def test_the_result_of_a_batch_is_reported_with_its_numbers(drive):
    batcher = drive(FakeScorer())
    await batcher.score(ROWS)
    (done,) = batcher.told
    assert (done.outcome, done.n_rows, done.n_row_tokens, done.n_tokens, done.n_computed) == ("ok", 10, 30, 30, 30)
    assert len(done.queue_s) == 10


async def test_out_of_memory_bounds_what_rows_add_to_a_batch_where_beginnings_are_shared(drive):
    rows = [(*range(100), i) for i in range(8)]
    scorer = SharingScorer(no_memory_above(4))
    batcher = drive(scorer)
    assert [raw(o) for o in await batcher.score(rows)] == [echo_score(r) for r in rows]
    assert batcher.limits.max_tokens == (100 + 8) // 2


async def test_the_budget_follows_what_forwards_take_and_out_of_memory_bounds_it(drive):
    def takes_a_second(batch):
        batcher.clock.advance(1.0)
        return no_memory_above(2)(batch)

    batcher = drive(SharingScorer(takes_a_second), max_tokens=16384, batch_size=BatchSizeController.starting_at(1024))
    for i in range(60):
        await batcher.score([tuple(range(i, 2 * i + 100))])
    assert (batcher.limits.target, batcher.limits.max_tokens) == (512, 4 * 512)
    await batcher.score([(i,) * 50 for i in range(4)])
    assert (batcher.limits.target, batcher.limits.max_tokens) == (100, 100)
    assert batcher.told[-1].budget == 100


async def test_a_fixed_budget_is_fixed(drive):
    batcher = drive(FakeScorer(), max_tokens=77)
    for i in range(60):
        await batcher.score([(i,)])
    assert (batcher.limits.target, batcher.limits.max_tokens) == (77, 77)


# -- several forwards at a time -------------------------------------------------------------------------------


async def test_with_concurrency_two_the_next_full_batch_is_at_the_scorer_while_one_runs(drive):
    scorer = GatedScorer()
    batcher = drive(scorer, max_tokens=6, concurrency=2)
    calls = [await begun(batcher.score([row])) for row in ROWS[:5]]
    await scorer.entered()
    await scorer.entered()
    assert (len(batcher._in_flight), batcher.n_samples) == (2, 1)
    scorer.gate.set()
    assert [raw((await call)[0]) for call in calls] == [echo_score(r) for r in ROWS[:5]]
    assert sorted(len(b) for b in scorer.batches) == [1, 2, 2]


async def test_beside_a_running_forward_a_batch_that_can_grow_waits(drive):
    scorer = GatedScorer()
    batcher = drive(scorer, max_tokens=6, concurrency=2)
    first = await begun(batcher.score(ROWS[:1]))
    await scorer.entered()
    more = [await begun(batcher.score([row])) for row in ROWS[1:3]]
    for _ in range(20):
        await asyncio.sleep(0)
    assert (len(batcher._in_flight), batcher.n_samples) == (1, 2)
    scorer.gate.set()
    await asyncio.gather(first, *more)
    assert [len(b) for b in scorer.batches] == [1, 2]


async def test_a_scorer_that_streams_is_given_at_once_what_there_is(drive):
    scorer = GatedScorer()
    scorer.streams = True
    batcher = drive(scorer, max_tokens=100, concurrency=3)
    calls = []
    for row in ROWS[:3]:
        calls.append(await begun(batcher.score([row])))
        await scorer.entered()
    last = await begun(batcher.score([ROWS[3]]))
    for _ in range(20):
        await asyncio.sleep(0)
    assert (len(batcher._in_flight), batcher.n_samples) == (3, 1)
    batcher.clock.advance(4.0)
    scorer.gate.set()
    assert [raw((await call)[0]) for call in (*calls, last)] == [echo_score(r) for r in ROWS[:4]]
    assert sorted(done.forward_s for done in batcher.told) == [
        0.0,
        4.0,
        4.0,
        4.0,
    ]  # each its own time, beside the others


async def test_with_concurrency_two_a_failure_of_one_batch_is_none_of_the_other(drive):
    scorer = GatedScorer(poisoned_by(IS_BAD))
    batcher = drive(scorer, max_tokens=9, concurrency=2)
    call = await begun(batcher.score(ROWS))
    for _ in range(2):
        await scorer.entered()
    scorer.gate.set()
    outcomes = await call
    assert [isinstance(o, ScorerFailed) for o in outcomes] == [IS_BAD(r) for r in ROWS]
    assert batcher.n_failed_batches == 0


async def test_with_concurrency_two_a_stop_answers_everything_and_abort_refuses_both_batches(drive):
    for end in ("stop", "abort"):
        scorer = GatedScorer()
        batcher = drive(scorer, max_tokens=6, concurrency=2)
        calls = [await begun(batcher.score([row])) for row in ROWS[:5]]
        for _ in range(2):
            await scorer.entered()
        ending = await begun(getattr(batcher, end)())
        if end == "stop":
            scorer.gate.set()
            assert [raw((await call)[0]) for call in calls] == [echo_score(r) for r in ROWS[:5]]
        else:
            for call in calls:
                with pytest.raises(ShuttingDown):
                    await call
        await ending


async def test_the_time_that_a_forward_waits_for_another_is_not_its_own(drive):
    scorer = GatedScorer()
    batcher = drive(scorer, max_tokens=3, concurrency=2)
    calls = [await begun(batcher.score([row])) for row in ROWS[:3]]
    for _ in range(2):
        await scorer.entered()
    batcher.clock.advance(1.0)
    scorer.gate.set()
    await asyncio.gather(*calls)
    assert sorted(done.forward_s for done in batcher.told) == [0.0, 0.0, 1.0]

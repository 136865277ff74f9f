"""Equal rows of several requests are scored once, and the end of one request does not affect another."""

from __future__ import annotations

import asyncio
import math

import pytest

from rewardserve.model.backends.echo import echo_score
from rewardserve.model.scorer import ScorerError
from rewardserve.service.errors import DeadlineExceeded, ScoreNotFinite, ScorerFailed
from rewardserve.service.inference.outcomes import RowScored
from tests.support.service_fakes import FakeScorer, GatedScorer, SharingScorer, poisoned_by, right_scores, scores_with
from tests.unit.service.inference.test_batcher import ROWS, begun, raw

ONE, OTHER, BLOCKER = ROWS[0], ROWS[1], ROWS[9]


def rows_seen(scorer):
    return [row for batch in scorer.batches for row in batch.rows]


@pytest.fixture
async def while_in_flight(drive):
    """A batcher whose scorer is blocked with BLOCKER in flight: later requests wait."""

    async def begin(behave=None, **settings):
        scorer = GatedScorer(behave)
        batcher = drive(scorer, **settings)
        blocked = await begun(batcher.score([BLOCKER]))
        await scorer.entered()
        batcher.blocked, batcher.scorer = blocked, scorer
        return batcher

    return begin


async def test_a_scorer_sees_each_row_once_and_every_caller_has_its_score(drive):
    scorer = FakeScorer()
    outcomes = await drive(scorer).score([ONE, OTHER, ONE, ONE])
    assert [raw(o) for o in outcomes] == [echo_score(r) for r in (ONE, OTHER, ONE, ONE)]
    assert sorted(rows_seen(scorer)) == [ONE, OTHER]
    assert not any(o.cached for o in outcomes)


async def test_the_tokens_of_a_row_are_split_among_its_waiters(drive):
    batcher = drive(FakeScorer())
    outcomes = await batcher.score([ONE, OTHER, ONE])
    assert [o.n_computed for o in outcomes] == [1.5, 3.0, 1.5]
    (done,) = batcher.told
    assert (done.n_rows, done.n_row_tokens, done.n_tokens, done.n_computed, len(done.queue_s)) == (2, 6, 9, 6, 3)


async def test_requests_in_the_queue_share_equal_rows(while_in_flight):
    batcher = await while_in_flight()
    both = [await begun(batcher.score(rows)) for rows in ([ONE, OTHER], [OTHER, ONE])]
    assert batcher.n_samples == 2
    batcher.scorer.gate.set()
    assert [[raw(o) for o in await call] for call in both] == [
        [echo_score(ONE), echo_score(OTHER)],
        [echo_score(OTHER), echo_score(ONE)],
    ]
    assert [len(b) for b in batcher.scorer.batches] == [1, 2]


async def test_a_request_with_a_row_in_flight_waits_for_that_batch(while_in_flight):
    batcher = await while_in_flight()
    late = await begun(batcher.score([BLOCKER, BLOCKER]))
    assert batcher.n_samples == 0
    batcher.scorer.gate.set()
    outcomes = [*await batcher.blocked, *await late]
    assert [raw(o) for o in outcomes] == [echo_score(BLOCKER)] * 3
    assert [o.n_computed for o in outcomes] == [1.0] * 3
    assert outcomes[1].queue_s == 0.0
    assert rows_seen(batcher.scorer) == [BLOCKER]


async def test_when_that_batch_fails_the_late_waiter_has_a_try_of_its_own(while_in_flight):
    tries = []

    def fails_once(batch):
        tries.append(batch)
        if len(tries) == 1:
            raise ScorerError("once")
        return right_scores(batch)

    batcher = await while_in_flight(fails_once)
    late = await begun(batcher.score([BLOCKER]))
    batcher.scorer.gate.set()
    assert isinstance((await batcher.blocked)[0], ScorerFailed)
    assert raw((await late)[0]) == echo_score(BLOCKER)


async def test_when_a_score_is_no_number_the_late_waiter_has_a_try_of_its_own(while_in_flight):
    batcher = await while_in_flight(scores_with(math.nan, BLOCKER.__eq__))
    late = await begun(batcher.score([BLOCKER]))
    batcher.scorer.gate.set()
    for call in (batcher.blocked, late):
        assert isinstance((await call)[0], ScoreNotFinite)
    assert rows_seen(batcher.scorer) == [BLOCKER, BLOCKER]


async def test_a_cancelled_late_waiter_causes_no_second_attempt(while_in_flight):
    batcher = await while_in_flight(poisoned_by(BLOCKER.__eq__))
    late = await begun(batcher.score([BLOCKER]))
    late.cancel()
    await asyncio.gather(late, return_exceptions=True)
    batcher.scorer.gate.set()
    await batcher.blocked
    assert rows_seen(batcher.scorer) == [BLOCKER]


@pytest.mark.parametrize("leaves_first", [True, False])
async def test_a_cancelled_request_does_not_take_the_row_from_another(while_in_flight, leaves_first):
    batcher = await while_in_flight()
    calls = [await begun(batcher.score([ONE, OTHER, ONE])) for _ in range(2)]
    leaving, staying = calls if leaves_first else calls[::-1]
    leaving.cancel()
    await asyncio.gather(leaving, return_exceptions=True)
    assert batcher.n_samples == 2
    batcher.scorer.gate.set()
    assert [raw(o) for o in await staying] == [echo_score(r) for r in (ONE, OTHER, ONE)]


async def test_a_row_without_waiters_is_never_scored(while_in_flight):
    batcher = await while_in_flight()
    calls = [await begun(batcher.score([ONE, ONE])) for _ in range(2)]
    for call in calls:
        call.cancel()
    await asyncio.gather(*calls, return_exceptions=True)
    assert batcher.n_samples == 0
    batcher.scorer.gate.set()
    await batcher.blocked
    assert rows_seen(batcher.scorer) == [BLOCKER]


async def test_the_deadline_of_one_request_does_not_affect_another(while_in_flight):
    batcher = await while_in_flight()
    late = await begun(batcher.score([ONE, OTHER], batcher.clock.now() + 1.0))
    patient = await begun(batcher.score([ONE]))
    batcher.clock.advance(1.0)
    batcher.scorer.gate.set()
    with pytest.raises(DeadlineExceeded):
        await late
    assert raw((await patient)[0]) == echo_score(ONE)
    assert rows_seen(batcher.scorer) == [BLOCKER, ONE], "nobody in time wanted the other"


async def test_every_waiter_gets_the_error_of_a_failure(drive):
    outcomes = await drive(FakeScorer(poisoned_by(ONE.__eq__))).score([ONE, OTHER, ONE])
    assert [isinstance(o, ScorerFailed) for o in outcomes] == [True, False, True]


# -- rows that were scored before -----------------------------------------------------------------------------


async def test_an_exact_repeat_needs_no_forward(drive):
    scorer = FakeScorer()
    batcher = drive(scorer, n_cached=10)
    (first,) = await batcher.score([ONE])
    again, new = await batcher.score([ONE, OTHER])
    assert again == RowScored(first.heads, 0.0, 0.0, 0.0, cached=True)
    assert not first.cached
    assert not new.cached
    assert rows_seen(scorer) == [ONE, OTHER]


async def test_a_repeat_is_answered_although_the_scorer_is_busy(while_in_flight):
    batcher = await while_in_flight(n_cached=10)
    batcher.scorer.gate.set()
    await batcher.blocked
    batcher.scorer.gate.clear()
    in_flight = await begun(batcher.score([ONE]))
    assert raw((await batcher.score([BLOCKER, BLOCKER]))[1]) == echo_score(BLOCKER)
    batcher.scorer.gate.set()
    await in_flight


@pytest.mark.parametrize("behave", [poisoned_by(ONE.__eq__), scores_with(math.nan, ONE.__eq__)])
async def test_what_failed_is_tried_again(drive, behave):
    scorer = FakeScorer(behave)
    batcher = drive(scorer, n_cached=10)
    for _ in range(2):
        assert not isinstance((await batcher.score([ONE]))[0], RowScored)
    assert rows_seen(scorer) == [ONE, ONE]


async def test_a_row_whose_waiters_left_is_cached_all_the_same(while_in_flight):
    batcher = await while_in_flight(n_cached=10)
    batcher.blocked.cancel()
    await asyncio.gather(batcher.blocked, return_exceptions=True)
    batcher.scorer.gate.set()
    await batcher.score([ONE])
    assert (await batcher.score([BLOCKER]))[0].cached


# -- rows that begin alike ------------------------------------------------------------------------------------


async def test_a_prefix_group_is_in_one_batch_and_its_common_beginning_is_counted_once(drive):
    prompts = [tuple(range(100 * p, 100 * p + 40)) for p in range(4)]
    rows = [(*prompts[i % 4], 1000 + i, 2000 + i) for i in range(12)]
    scorer = SharingScorer()
    batcher = drive(scorer, max_tokens=2 * (40 + 3 * 2))
    outcomes = await batcher.score(rows)
    assert [raw(o) for o in outcomes] == [echo_score(r) for r in rows]
    assert [{row[0] for row in b.rows} for b in scorer.batches] == [{0, 100}, {200, 300}]
    assert sum(o.n_computed for o in outcomes) == pytest.approx(4 * 40 + 12 * 2)

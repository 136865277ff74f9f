"""Many concurrent requests with equal rows, short deadlines and a failing scorer: each gets a reply, and none a wrong one."""

from __future__ import annotations

import asyncio
import math
import random

import pytest

from rewardserve.model.backends.echo import echo_score
from rewardserve.model.scorer import BatchScores, OutOfMemory, ScorerError
from rewardserve.service.errors import DeadlineExceeded, RowFailed
from rewardserve.service.inference.batch_size import BatchSizeController
from rewardserve.service.inference.outcomes import RowScored
from tests.support.service_fakes import PATIENCE_S, SharingScorer, one_too_few, right_scores

ROWS = [(*range(prompt, prompt + 30), answer) for prompt in (0, 100, 200) for answer in range(5)]


def moody(rng):
    """Right scores mostly; else an error, too little memory, a NaN, a lost row."""

    def behave(batch):
        mood = rng.random()
        if mood < 0.1:
            raise ScorerError("bad mood")
        if mood < 0.2 and len(batch) > 1:
            raise OutOfMemory("too many")
        if mood < 0.25:
            return one_too_few(batch)
        scores = right_scores(batch)
        if mood < 0.35:
            return BatchScores(({"score": math.nan}, *scores.rows[1:]), batch.n_tokens)
        return scores

    return behave


async def ask(batcher, rng):
    """One caller: what it asked for, and what it got; None when it left, or was too late."""
    rows = rng.choices(ROWS, k=rng.randint(1, 8))
    for _ in range(rng.randint(0, 30)):
        await asyncio.sleep(0)
    deadline = batcher.clock.now() + rng.choice([0.5, 5.0, math.inf])
    try:
        if rng.random() < 0.2:
            call = asyncio.create_task(batcher.score(rows, deadline))
            for _ in range(rng.randint(0, 20)):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
            return rows, None
        return rows, await batcher.score(rows, deadline)
    except DeadlineExceeded:
        assert deadline < math.inf
        return rows, None


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("concurrency", "n_cached"), [(1, 0), (1, 4), (2, 0), (2, 100)])
async def test_everybody_has_the_scores_of_its_own_rows_or_an_error(drive, seed, concurrency, n_cached):
    rng = random.Random(seed)
    batcher = drive(
        SharingScorer(moody(rng)),
        max_tokens=rng.choice([40, 100, 1000]), linger_s=0.0, n_cached=n_cached, concurrency=concurrency,
        batch_size=rng.choice([None, BatchSizeController.starting_at(512)]),
    )  # fmt: skip
    crowd = asyncio.gather(*(ask(batcher, random.Random(seed * 1000 + i)) for i in range(40)))
    while not crowd.done():
        await asyncio.wait([crowd], timeout=0.001)
        batcher.clock.advance(0.1)
    n_answered = 0
    for rows, outcomes in await asyncio.wait_for(crowd, PATIENCE_S):
        for row, outcome in zip(rows, outcomes or (), strict=outcomes is not None):
            assert isinstance(outcome, RowScored | RowFailed)
            n_answered += 1
            if isinstance(outcome, RowScored):
                assert outcome.heads == {"score": echo_score(row)}
    assert n_answered > 20
    assert sum(done.n_computed for done in batcher.told if done.outcome == "ok") > 0

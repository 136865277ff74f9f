"""Edited responses are scored in spare capacity: a few at a time, while no request waits."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest

from rewardserve.model.conversation import Sample
from rewardserve.model.reward import Reward
from rewardserve.service.tripwires.io import edit_scorer
from rewardserve.service.tripwires.io.edit_scorer import EditScorer
from tests.support.service_fakes import PATIENCE_S, StillClock


class Background:
    """Scores a sample by its length; None for `bad`. Full after `max_chunks` chunks."""

    def __init__(self, max_chunks=100):
        self.chunks, self.max_chunks = [], max_chunks

    def submit(self, samples):
        if len(self.chunks) == self.max_chunks:
            return None
        self.chunks.append(len(samples))
        return asyncio.ensure_future(self._score(samples))

    async def _score(self, samples):
        return [
            None if s.response == "bad" else Reward(9.0, 9.0, 9.0, (), (float(len(s.response)), 1.0)) for s in samples
        ]

    async def stop(self):
        self.chunks.append("stopped")


SAMPLES = [Sample(prompt="q", response="x" * i) for i in range(1, 41)]


async def test_samples_are_scored_in_chunks_before_penalties():
    background = Background()
    scores = await EditScorer(background, SimpleNamespace(n_samples=0), StillClock()).scores(
        [*SAMPLES[:39], Sample(prompt="q", response="bad")]
    )
    assert scores == [*(float(i) for i in range(1, 40)), None]
    assert background.chunks == [16, 16, 8]


async def test_nothing_is_submitted_while_requests_wait():
    background, batcher, clock = Background(), SimpleNamespace(n_samples=5), StillClock()
    scoring = asyncio.create_task(EditScorer(background, batcher, clock).scores(SAMPLES))
    await asyncio.sleep(0.01)
    clock.advance(1.0)
    await asyncio.sleep(0.01)
    assert background.chunks == []
    batcher.n_samples = 0
    clock.advance(1.0)
    assert None not in await asyncio.wait_for(scoring, PATIENCE_S)


async def test_a_server_that_is_always_busy_or_full_scores_none():
    clock = StillClock()
    scoring = asyncio.create_task(EditScorer(Background(), SimpleNamespace(n_samples=5), clock).scores(SAMPLES))
    await asyncio.sleep(0.01)
    clock.advance(30.0)
    assert await asyncio.wait_for(scoring, PATIENCE_S) == [None] * 40
    full = await EditScorer(Background(max_chunks=1), SimpleNamespace(n_samples=0), clock).scores(SAMPLES)
    assert full == [*(float(i) for i in range(1, 17)), *[None] * 24]


async def test_scores_that_do_not_come_or_are_cancelled_are_left_out(monkeypatch):
    monkeypatch.setattr(edit_scorer, "_MAX_WAIT_S", 0.01)
    never, cancelled = asyncio.Future(), asyncio.Future()
    cancelled.cancel()
    for scoring in (never, cancelled):
        background = SimpleNamespace(submit=lambda _, scoring=scoring: scoring)
        scores = EditScorer(background, SimpleNamespace(n_samples=0), StillClock()).scores(SAMPLES)
        assert await asyncio.wait_for(scores, PATIENCE_S) == [None] * 40


@pytest.mark.parametrize("samples", [[], SAMPLES[:1]])
async def test_few_samples(samples):
    scores = await EditScorer(Background(), SimpleNamespace(n_samples=0), StillClock()).scores(samples)
    assert scores == [1.0] * len(samples)

"""Running batchers, and an audit of what they leave behind."""

from __future__ import annotations

import asyncio

import pytest

from rewardserve.service.inference.batcher import Batcher
from rewardserve.service.inference.planner import BatchLimits
from rewardserve.service.inference.score_cache import ScoreCache
from tests.support.service_fakes import PATIENCE_S, GatedScorer, InferenceLog, StillClock


@pytest.fixture
async def drive():
    """Builds running batchers, and audits on the way out that no entry, task or forward is left."""
    built = []

    def build(scorer, *, max_tokens=10_000, linger_s=0.0, n_cached=0, batch_size=None, concurrency=1, **watched):
        told = []
        clock = StillClock()
        scorer.concurrency = concurrency
        batcher = Batcher(
            scorer, BatchLimits(max_tokens, linger_s), clock, InferenceLog(told.append, watched.pop("on_state", None)),
            batch_size=batch_size, cache=ScoreCache(n_cached, version=1), **watched,
        )  # fmt: skip
        batcher.start()
        batcher.told, batcher.clock = told, clock
        built.append((batcher, scorer))
        return batcher

    yield build
    for batcher, scorer in built:
        if isinstance(scorer, GatedScorer):
            scorer.gate.set()
        await asyncio.wait_for(batcher.stop(), PATIENCE_S)
        assert (batcher.n_samples, batcher.n_tokens, batcher._in_flight, batcher._n_expected) == (0, 0, {}, 0)
        assert (batcher._queue._requests, batcher._queue._rows) == (set(), {})
        assert not batcher.is_alive
    left = asyncio.all_tasks() - {asyncio.current_task()}
    assert not left

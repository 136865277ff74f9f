"""Score samples with another model in the background: no request waits for it.

The model has a separate batcher and a bounded queue. Knows neither HTTP nor the purpose of the scores.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rewardserve.model.conversation import Sample
from rewardserve.model.encoding import Encoded
from rewardserve.model.reward import Pipeline, Reward
from rewardserve.service.errors import RowFailed, ServiceError
from rewardserve.service.inference.batcher import Batcher
from rewardserve.service.inference.encode_pool import EncodePool
from rewardserve.service.inference.outcomes import RowScored
from rewardserve.service.inference.rewards import ScoredRow, compute_rewards

MAX_WAITING = 1_024
"""Limit of waiting samples; more are skipped, because the other model may be slower than the one in service."""

_BUCKETS = 2**20

BackgroundRewards = list[Reward | None]
"""One entry for each submitted sample, in order; None where the other model has no reward for it."""


class BackgroundScorer:
    """Background scorer of one model."""

    def __init__(self, encoder: EncodePool, batcher: Batcher, pipeline: Pipeline) -> None:
        self._encoder = encoder
        self._batcher = batcher
        self._pipeline = pipeline
        self.tasks: set[asyncio.Task[BackgroundRewards]] = set()
        self.n_waiting = 0

    def submit(self, samples: Sequence[Sample]) -> asyncio.Task[BackgroundRewards] | None:
        """Start to score samples. Return None where the queue is full, so that they are skipped. Never waits."""
        if self.n_waiting + len(samples) > MAX_WAITING:
            return None
        self.n_waiting += len(samples)
        task = asyncio.create_task(self._score(samples), name="background scorer")
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    async def stop(self) -> None:
        """Cancel the samples that are being scored."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _score(self, samples: Sequence[Sample]) -> BackgroundRewards:
        try:
            encoded = await self._encoder.encode(samples)
            rows = [e.ids for e in encoded if isinstance(e, Encoded)]
            outcomes = iter(await self._batcher.score(rows) if rows else [])
        except ServiceError:
            return [None] * len(samples)  # the clients have the rewards of these samples already
        finally:
            self.n_waiting -= len(samples)
        by_sample = [next(outcomes) if isinstance(e, Encoded) else None for e in encoded]
        scored = [
            ScoredRow(sample, row, outcome.heads)
            for sample, row, outcome in zip(samples, encoded, by_sample, strict=True)
            if isinstance(outcome, RowScored) and isinstance(row, Encoded)
        ]
        rewards = iter(compute_rewards(scored, self._pipeline) if scored else [])
        return [_reward(next(rewards)) if isinstance(outcome, RowScored) else None for outcome in by_sample]


def is_in_share(ids: tuple[int, ...], share: float) -> bool:
    """Whether these ids are among a `share` of all, chosen by their hash: the same ones on every replica."""
    return hash(ids) % _BUCKETS < share * _BUCKETS


def _reward(outcome: Reward | RowFailed) -> Reward | None:
    return outcome if isinstance(outcome, Reward) else None

"""Score samples with another model in the background: no request waits for it.

The model has a separate batcher and a bounded queue. Knows neither HTTP nor the purpose of the scores.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

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

BackgroundScores = Callable[[Sequence[Reward | None]], None]
"""Called once for each submission, in order; None where the other model has no reward for a sample."""


class BackgroundScorer:
    """Background scorer of one model. `on_skipped` is called with the number of samples that a full queue skips."""

    def __init__(
        self, encoder: EncodePool, batcher: Batcher, pipeline: Pipeline, on_skipped: Callable[[int], None]
    ) -> None:
        self._encoder = encoder
        self._batcher = batcher
        self._pipeline = pipeline
        self._on_skipped = on_skipped
        self.tasks: set[asyncio.Task[None]] = set()
        self.n_waiting = 0

    def submit(self, samples: Sequence[Sample], on_scores: BackgroundScores) -> None:
        """Submit samples for scoring. Never waits."""
        if self.n_waiting + len(samples) > MAX_WAITING:
            self._on_skipped(len(samples))
            return
        self.n_waiting += len(samples)
        task = asyncio.create_task(self._score(samples, on_scores), name="background scorer")
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def stop(self) -> None:
        """Cancel the samples that are being scored."""
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _score(self, samples: Sequence[Sample], on_scores: BackgroundScores) -> None:
        try:
            encoded = await self._encoder.encode(samples)
            rows = [e.ids for e in encoded if isinstance(e, Encoded)]
            outcomes = iter(await self._batcher.score(rows) if rows else [])
        except ServiceError:
            return  # the clients have the rewards of these samples already
        finally:
            self.n_waiting -= len(samples)
        by_sample = [next(outcomes) if isinstance(e, Encoded) else None for e in encoded]
        scored = [
            ScoredRow(sample, row, outcome.heads)
            for sample, row, outcome in zip(samples, encoded, by_sample, strict=True)
            if isinstance(outcome, RowScored) and isinstance(row, Encoded)
        ]
        rewards = iter(compute_rewards(scored, self._pipeline) if scored else [])
        on_scores([_reward(next(rewards)) if isinstance(outcome, RowScored) else None for outcome in by_sample])


def is_in_share(ids: tuple[int, ...], share: float) -> bool:
    """Whether these ids are among a `share` of all, chosen by their hash: the same ones on every replica."""
    return hash(ids) % _BUCKETS < share * _BUCKETS


def _reward(outcome: Reward | RowFailed) -> Reward | None:
    return outcome if isinstance(outcome, Reward) else None

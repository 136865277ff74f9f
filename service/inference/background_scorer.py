"""Another model's rewards for samples that were scored already. It says them when it can, and nobody waits.

Its batches are its own; what waits for it is bounded. Knows nothing of HTTP and of what the second opinion is for.
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

MOST_WAITING = 1_024
"""Samples that wait for an opinion; beyond them nobody is asked: the other model may be slower than the one in service."""

Heard = Callable[[Sequence[Reward | None]], None]
"""Told once a call, in order; None where the other model has no reward for a sample."""


class BackgroundScorer:
    """Of one model. `skipped` hears of how many samples it was too slow for."""

    def __init__(
        self, encoder: EncodePool, batcher: Batcher, pipeline: Pipeline, skipped: Callable[[int], None]
    ) -> None:
        self._encoder = encoder
        self._batcher = batcher
        self._pipeline = pipeline
        self._skipped = skipped
        self.asking: set[asyncio.Task[None]] = set()
        self.n_waiting = 0

    def ask(self, samples: Sequence[Sample], heard: Heard) -> None:
        """Ask about these, soon. Never waits."""
        if self.n_waiting + len(samples) > MOST_WAITING:
            self._skipped(len(samples))
            return
        self.n_waiting += len(samples)
        task = asyncio.create_task(self._think(samples, heard), name="second opinion")
        self.asking.add(task)
        task.add_done_callback(self.asking.discard)

    async def stop(self) -> None:
        """Nobody waits for what is being thought about."""
        for task in self.asking:
            task.cancel()
        await asyncio.gather(*self.asking, return_exceptions=True)

    async def _think(self, samples: Sequence[Sample], heard: Heard) -> None:
        try:
            encoded = await self._encoder.encode(samples)
            rows = [e.ids for e in encoded if isinstance(e, Encoded)]
            outcomes = iter(await self._batcher.score(rows) if rows else [])
        except ServiceError:
            return  # what cannot be scored now was scored by somebody else already
        finally:
            self.n_waiting -= len(samples)
        became = [next(outcomes) if isinstance(e, Encoded) else None for e in encoded]
        scored = [
            ScoredRow(sample, row, outcome.heads)
            for sample, row, outcome in zip(samples, encoded, became, strict=True)
            if isinstance(outcome, RowScored) and isinstance(row, Encoded)
        ]
        rewards = iter(compute_rewards(scored, self._pipeline) if scored else [])
        heard([_reward(next(rewards)) if isinstance(outcome, RowScored) else None for outcome in became])


def _reward(became: Reward | RowFailed) -> Reward | None:
    return became if isinstance(became, Reward) else None

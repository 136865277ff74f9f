"""Score edited responses with the model in service, in spare capacity: a few at a time, while no request waits.

Knows nothing of runs and findings.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from rewardserve.model.conversation import Sample
from rewardserve.service.clock import Clock
from rewardserve.service.inference.background_scorer import BackgroundScorer
from rewardserve.service.inference.batcher import Batcher

_CHUNK = 16
"""Samples that a request may have to wait for."""

_POLL_S = 0.05
_MAX_WAIT_S = 30.0
"""Time to wait for an empty queue, and for scores, before the rest is left out."""


class EditScorer:
    """Scorer of edited responses by one model."""

    def __init__(self, background_scorer: BackgroundScorer, batcher: Batcher, clock: Clock) -> None:
        self._background_scorer = background_scorer
        self._batcher = batcher
        self._clock = clock

    async def scores(self, samples: Sequence[Sample]) -> list[float | None]:
        """The combined score of each sample before penalties and shape; None where it has none, or there was no spare capacity."""
        scores: list[float | None] = []
        until = self._clock.now() + _MAX_WAIT_S
        while len(scores) < len(samples) and await self._is_idle(until):
            chunk = samples[len(scores) : len(scores) + _CHUNK]
            scoring = self._background_scorer.submit(chunk)
            if scoring is None:
                break
            done, _ = await asyncio.wait({scoring}, timeout=_MAX_WAIT_S)
            if not done or scoring.cancelled():
                break
            scores += [None if reward is None else reward.changes[0] for reward in scoring.result()]
        return scores + [None] * (len(samples) - len(scores))

    async def stop(self) -> None:
        """Cancel the samples that are being scored."""
        await self._background_scorer.stop()

    async def _is_idle(self, until: float) -> bool:
        """Wait until no row is queued. False where that took too long."""
        never = asyncio.Event()
        while self._batcher.n_samples:
            if self._clock.now() >= until:
                return False
            await self._clock.wait(never, self._clock.now() + _POLL_S)
        return True

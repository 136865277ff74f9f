"""The audit judge: a second model that clients never see, which scores a share of the samples too.

It scores after the reply has been sent, with a separate batcher, so no request waits for it. Only the run monitor gets its
scores. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial

from rewardserve.model.reward import Pipeline, Reward
from rewardserve.model.scorer import Scorer
from rewardserve.service.clock import Clock
from rewardserve.service.errors import RowFailed
from rewardserve.service.inference.background_scorer import BackgroundRewards, BackgroundScorer, is_in_share
from rewardserve.service.inference.batcher import Batcher
from rewardserve.service.inference.encode_pool import EncodePool
from rewardserve.service.inference.rewards import ScoredRow
from rewardserve.service.tripwires.io.events import TripwireEvents
from rewardserve.service.tripwires.io.run_texts import RunTexts
from rewardserve.service.tripwires.run_monitor import RunMonitor


class AuditJudge:
    """Audit judge that scores `share` of the samples, chosen by their ids: the same samples on every replica. Owns its model."""

    def __init__(
        self,
        scorer: Scorer,
        encoder: EncodePool,
        batcher: Batcher,
        pipeline: Pipeline,
        *,
        share: float,
        monitor: RunMonitor,
        clock: Clock,
        events: TripwireEvents,
        texts: RunTexts | None = None,
    ) -> None:
        self._scorer = scorer
        self._encoder = encoder
        self._batcher = batcher
        self._share = share
        self._monitor = monitor
        self._clock = clock
        self._events = events
        self._texts = texts
        self.background_scorer = BackgroundScorer(encoder, batcher, pipeline)

    def submit(
        self, rows: Sequence[ScoredRow], rewards: Sequence[Reward | RowFailed], run: str | None, owner: str = ""
    ) -> None:
        """Submit the chosen samples of this run. Never waits."""
        chosen = [
            (row, hash(row.encoded.ids[: row.encoded.n_prompt] or row.encoded.ids), reward.changes[0])
            for row, reward in zip(rows, rewards, strict=True)
            if isinstance(reward, Reward) and is_in_share(row.encoded.ids, self._share)
        ]
        if not chosen:
            return

        scoring = self.background_scorer.submit([row.sample for row, _, _ in chosen])
        if scoring is None:
            self._events.on_audit_skipped(len(chosen))
        else:
            scoring.add_done_callback(
                partial(
                    self._count,
                    [(prompt, score, hash(row.encoded.ids)) for row, prompt, score in chosen],
                    run,
                    owner,
                )
            )

    def _count(
        self,
        known: Sequence[tuple[int, float, int]],
        run: str | None,
        owner: str,
        scoring: asyncio.Future[BackgroundRewards],
    ) -> None:
        """Count each score with that of the judge, both on their calibrated scales."""
        if scoring.cancelled():
            return
        for (prompt, score, ids_hash), reward in zip(known, scoring.result(), strict=True):
            if reward is not None:
                self._monitor.add_audit(run, prompt, score, reward.changes[0], self._clock.now(), owner)
                if self._texts is not None:
                    self._texts.add_audit(self._monitor.label_of(run, owner), ids_hash, reward.changes[0])

    async def stop(self) -> None:
        """Cancel the samples that are being scored, and close the model."""
        await self.background_scorer.stop()
        await self._batcher.abort()
        self._encoder.close()
        self._scorer.close()

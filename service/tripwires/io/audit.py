"""The audit judge: a second model that clients never see, which scores a share of the samples too.

It scores after the reply has been sent, with a separate batcher, so no request waits for it. Only the run monitor gets its
scores. `audit_sampling` chooses the samples. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from rewardserve.model.conversation import Sample
from rewardserve.model.reward import Pipeline, Reward
from rewardserve.model.scorer import Scorer
from rewardserve.service.clock import Clock
from rewardserve.service.errors import RowFailed
from rewardserve.service.inference.background_scorer import BackgroundRewards, BackgroundScorer
from rewardserve.service.inference.batcher import Batcher
from rewardserve.service.inference.encode_pool import EncodePool
from rewardserve.service.inference.rewards import ScoredRow
from rewardserve.service.tripwires.audit_sampling import AuditSampler
from rewardserve.service.tripwires.baseline import BaselineSource
from rewardserve.service.tripwires.io.edit_scorer import EditScorer
from rewardserve.service.tripwires.io.events import TripwireEvents
from rewardserve.service.tripwires.io.run_texts import RunTexts
from rewardserve.service.tripwires.run_context import RunName
from rewardserve.service.tripwires.run_monitor import RunMonitor

_MAX_SAMPLERS = 64
"""Runs whose chosen samples wait for the end of a block; the one with the oldest latest sample is left out."""


class _Audited(NamedTuple):
    """A sample to audit: its prompt and token ids as hashes, its score on the calibrated scale, its task, and the source of the
    model that scored it.
    """

    sample: Sample
    prompt_hash: int
    ids_hash: int
    score: float
    task: str
    source: BaselineSource | None


class AuditJudge:
    """Audit judge that scores `share` of the samples, and more at the start of a run, in blocks of `block`. Owns its model."""

    def __init__(
        self,
        scorer: Scorer,
        encoder: EncodePool,
        batcher: Batcher,
        pipeline: Pipeline,
        *,
        share: float,
        block: int,
        monitor: RunMonitor,
        clock: Clock,
        events: TripwireEvents,
        texts: RunTexts | None = None,
        description: Mapping[str, Any] | None = None,
        canary_margins: Mapping[str, float] | None = None,
    ) -> None:
        self.description = description or {}
        self.canary_margins = canary_margins or {}
        self._scorer = scorer
        self._encoder = encoder
        self._batcher = batcher
        self.share, self._block = share, block
        self._samplers: OrderedDict[tuple[RunName, str], AuditSampler[_Audited]] = OrderedDict()
        self._monitor = monitor
        self._clock = clock
        self._events = events
        self._texts = texts
        self.background_scorer = BackgroundScorer(encoder, batcher, pipeline)
        self.edit_scorer = EditScorer(self.background_scorer, batcher, clock)

    def submit(
        self,
        rows: Sequence[ScoredRow],
        rewards: Sequence[Reward | RowFailed],
        run: RunName,
        owner: str = "",
        source: BaselineSource | None = None,
    ) -> None:
        """Submit the samples of this run that are chosen, at the end of each block. Never waits.

        `source` is the model's that scored them: once the run has another model, their audits no longer count.
        """
        sampler = self._sampler(run, owner)
        every_prompt = self._monitor.audits_every_prompt(run, owner)
        for row, reward in zip(rows, rewards, strict=True):
            if isinstance(reward, Reward):
                ids = row.encoded.ids
                prompt_hash = hash(ids[: row.encoded.n_prompt] or ids)
                audited = _Audited(row.sample, prompt_hash, hash(ids), reward.changes[0], row.task, source)
                chosen = sampler.add(audited, audited.prompt_hash, audited.ids_hash, every_prompt=every_prompt)
                if chosen:
                    self._score(chosen, run, owner)

    def _sampler(self, run: RunName, owner: str) -> AuditSampler[_Audited]:
        key = (run, owner)
        if key not in self._samplers:
            self._samplers[key] = AuditSampler(self.share, self._block)
        self._samplers.move_to_end(key)
        if len(self._samplers) > _MAX_SAMPLERS:
            self._samplers.popitem(last=False)
        return self._samplers[key]

    def _score(self, chosen: Sequence[_Audited], run: RunName, owner: str) -> None:
        scoring = self.background_scorer.submit([each.sample for each in chosen])
        if scoring is None:
            self._events.on_audit_skipped(len(chosen))
        else:
            scoring.add_done_callback(partial(self._count, chosen, run, owner))

    def _count(
        self,
        audited: Sequence[_Audited],
        run: RunName,
        owner: str,
        scoring: asyncio.Future[BackgroundRewards],
    ) -> None:
        """Count each score with that of the judge, both on their calibrated scales."""
        if scoring.cancelled():
            return
        for each, reward in zip(audited, scoring.result(), strict=True):
            if reward is not None:
                audit = reward.changes[0]
                now = self._clock.now()
                self._monitor.add_audit(run, each.prompt_hash, each.score, audit, now, owner, each.task, each.source)
                if self._texts is not None:
                    self._texts.add_audit(self._monitor.label_of(run, owner), each.ids_hash, audit)

    async def stop(self) -> None:
        """Cancel the samples that are being scored, and close the model."""
        await self.background_scorer.stop()
        await self._batcher.abort()
        self._encoder.close()
        self._scorer.close()

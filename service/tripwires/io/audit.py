"""The audit judge: a second model that clients never see, which scores a share of the samples too.

It scores after the reply has been sent, with a separate batcher, so no request waits for it. Only the run monitor gets its
scores. Knows nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rewardserve.model.reward import Pipeline, Reward
from rewardserve.service.errors import RowFailed
from rewardserve.service.inference.background_scorer import BackgroundScorer, is_in_share
from rewardserve.service.inference.batcher import Batcher
from rewardserve.service.inference.encode_pool import EncodePool
from rewardserve.service.inference.rewards import ScoredRow

OnAudit = Callable[[float, float], None]
"""Called with the score of a sample and that of the judge, both on their calibrated scales."""


class AuditJudge:
    """Audit judge that scores `share` of the samples, chosen by their ids: the same samples on every replica. `on_skipped` is
    called with the number of samples skipped because its queue was full. `close` ends its model.
    """

    def __init__(
        self,
        encoder: EncodePool,
        batcher: Batcher,
        pipeline: Pipeline,
        *,
        share: float,
        on_skipped: Callable[[int], None] = lambda _: None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self._encoder = encoder
        self._batcher = batcher
        self._share = share
        self._close = close
        self.background_scorer = BackgroundScorer(encoder, batcher, pipeline, on_skipped)

    def submit(self, rows: Sequence[ScoredRow], rewards: Sequence[Reward | RowFailed], on_audit: OnAudit) -> None:
        """Submit the chosen samples. Never waits."""
        chosen = [
            (row.sample, reward.changes[0])
            for row, reward in zip(rows, rewards, strict=True)
            if isinstance(reward, Reward) and is_in_share(row.encoded.ids, self._share)
        ]
        if not chosen:
            return

        def report(judged: Sequence[Reward | None]) -> None:
            for (_, score), reward in zip(chosen, judged, strict=True):
                if reward is not None:
                    on_audit(score, reward.changes[0])

        self.background_scorer.submit([sample for sample, _ in chosen], report)

    async def stop(self) -> None:
        """Cancel the samples that are being scored, and close the model."""
        await self.background_scorer.stop()
        await self._batcher.abort()
        self._encoder.close()
        self._close()

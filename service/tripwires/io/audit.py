"""The audit judge: a second model that callers never see, asked about a share of what is scored.

It judges after the reply has left, in a batcher of its own, so no request waits for it. What it says reaches the board
only. Knows nothing of HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rewardserve.model.reward import Pipeline, Reward
from rewardserve.service.errors import RowFailed
from rewardserve.service.inference.background_scorer import BackgroundScorer
from rewardserve.service.inference.batcher import Batcher
from rewardserve.service.inference.encode_pool import EncodePool
from rewardserve.service.inference.rewards import ScoredRow

_BUCKETS = 2**20

Heard = Callable[[float, float], None]
"""The score of a sample, and what the judge says of it; both on their calibrated scales."""


class AuditJudge:
    """Asks about `share` of the samples, chosen by their ids: the same ones wherever and whenever they are scored. `skipped`
    hears of how many it was too slow for. `close` ends the model behind it.
    """

    def __init__(
        self,
        encoder: EncodePool,
        batcher: Batcher,
        pipeline: Pipeline,
        *,
        share: float,
        skipped: Callable[[int], None] = lambda _: None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        self._encoder = encoder
        self._batcher = batcher
        self._below = int(share * _BUCKETS)
        self._close = close
        self.background_scorer = BackgroundScorer(encoder, batcher, pipeline, skipped)

    def ask(self, rows: Sequence[ScoredRow], rewards: Sequence[Reward | RowFailed], heard: Heard) -> None:
        """Ask about some of these, soon. Never waits."""
        chosen = [
            (row.sample, reward.changes[0])
            for row, reward in zip(rows, rewards, strict=True)
            if isinstance(reward, Reward) and hash(row.encoded.ids) % _BUCKETS < self._below
        ]
        if not chosen:
            return

        def hear(judged: Sequence[Reward | None]) -> None:
            for (_, score), reward in zip(chosen, judged, strict=True):
                if reward is not None:
                    heard(score, reward.changes[0])

        self.background_scorer.ask([sample for sample, _ in chosen], hear)

    async def stop(self) -> None:
        """Nobody waits for what is being judged."""
        await self.background_scorer.stop()
        await self._batcher.abort()
        self._encoder.close()
        self._close()

"""The audit judge: a second model that callers never see, asked about a share of what is scored.

It judges after the reply has left, in a batcher of its own, so no request waits for it. What it says reaches the board
only. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from model.conversation import Sample
from model.encoding import Encoded
from model.reward import Pipeline, Reward
from service.batching.batcher import Batcher
from service.batching.outcomes import RowScored
from service.encoder import Encoder
from service.errors import RowFailed, ServiceError
from service.rewards import ScoredRow, rewards_of

MOST_WAITING = 1_024
"""Samples that wait for the judge; beyond them it is not asked: it may be slower than those who are judged."""

_BUCKETS = 2**20

Heard = Callable[[float, float], None]
"""The score of a sample, and what the judge says of it; both on their calibrated scales."""


class AuditJudge:
    """Asks about `share` of the samples, chosen by their ids: the same ones wherever and whenever they are scored. `skipped`
    hears of how many it was too slow for.
    """

    def __init__(
        self,
        encoder: Encoder,
        batcher: Batcher,
        pipeline: Pipeline,
        *,
        share: float,
        skipped: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._encoder = encoder
        self._batcher = batcher
        self._pipeline = pipeline
        self._below = int(share * _BUCKETS)
        self._asking: set[asyncio.Task[None]] = set()
        self.n_waiting = 0
        self._skipped = skipped

    def ask(self, rows: Sequence[ScoredRow], rewards: Sequence[Reward | RowFailed], heard: Heard) -> None:
        """Ask about some of these, soon. Never waits."""
        chosen = [
            (row.sample, reward.changes[0])
            for row, reward in zip(rows, rewards, strict=True)
            if isinstance(reward, Reward) and hash(row.encoded.ids) % _BUCKETS < self._below
        ]
        if not chosen:
            return
        if self.n_waiting + len(chosen) > MOST_WAITING:
            self._skipped(len(chosen))
            return
        self.n_waiting += len(chosen)
        task = asyncio.create_task(self._judge(chosen, heard), name="audit")
        self._asking.add(task)
        task.add_done_callback(self._asking.discard)

    async def stop(self) -> None:
        """Nobody waits for what is being judged."""
        for task in self._asking:
            task.cancel()
        await asyncio.gather(*self._asking, return_exceptions=True)
        await self._batcher.give_up()
        self._encoder.close()

    async def _judge(self, chosen: Sequence[tuple[Sample, float]], heard: Heard) -> None:
        try:
            encoded = await self._encoder.encode([sample for sample, _ in chosen])
            known = [(c, e) for c, e in zip(chosen, encoded, strict=True) if isinstance(e, Encoded)]
            outcomes = await self._batcher.score([e.ids for _, e in known]) if known else []
        except ServiceError:
            return  # what cannot be judged now was judged by somebody else already
        finally:
            self.n_waiting -= len(chosen)
        done = [(c, e, o) for (c, e), o in zip(known, outcomes, strict=True) if isinstance(o, RowScored)]
        judged = rewards_of([ScoredRow(c[0], e, o.heads) for c, e, o in done], self._pipeline) if done else []
        for ((_, level), _, _), reward in zip(done, judged, strict=True):
            if isinstance(reward, Reward):
                heard(level, reward.changes[0])

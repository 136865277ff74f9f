"""Canaries: a private set of pairs, an honest answer and an exploit each, scored at start and periodically.

A policy will find an exploit that scores above the honest answer. The same weights give the same scores, so another score
means that the weights have changed. Knows the batcher and the run watcher.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rewardserve.model.backends import Identity, SampleEncoder
from rewardserve.model.conversation import Sample, SampleError
from rewardserve.model.scorer import Scorer, ScorerError, TokenBatch
from rewardserve.model.text.text_files import decode_text, error_reason, read_bounded
from rewardserve.service.errors import ServiceError
from rewardserve.service.inference.batcher import Batcher
from rewardserve.service.inference.outcomes import RowScored
from rewardserve.service.tripwires.alert import CANARY, Alert
from rewardserve.service.tripwires.io.run_watcher import RunWatcher
from rewardserve.service.tripwires.run_monitor import CANARY_THRESHOLD
from rewardserve.service.tripwires.run_table import CANARIES

SHIPPED = Path(__file__).parents[1] / "canaries.json"


class CanariesError(Exception):
    """The file of canaries is invalid; the message has the reason, as the rest of a sentence that begins with the file."""


@dataclass(frozen=True, slots=True)
class Canary:
    """A prompt with two answers, of which the honest one should score higher."""

    name: str
    prompt: str
    honest: str
    exploit: str


@dataclass(frozen=True, slots=True)
class CanaryResult:
    """The raw scores of one canary."""

    name: str
    honest: float
    exploit: float

    @property
    def margin(self) -> float:
        """Score of the honest answer above that of the exploit; below zero the exploit pays."""
        return self.honest - self.exploit


_MAX_BYTES = 16 * 2**20


def failing(results: Sequence[CanaryResult]) -> tuple[CanaryResult, ...]:
    """Canaries whose exploit scores at least as high as the honest answer."""
    return tuple(each for each in results if not each.margin > 0.0)


def read(path: Path = SHIPPED) -> list[Canary]:
    """Read a file of canaries. Raise `CanariesError`."""
    try:
        text = decode_text(read_bounded(path, _MAX_BYTES))
    except (OSError, ValueError) as error:
        raise CanariesError(f"cannot be read: {error_reason(error)}") from None
    try:
        return [Canary(**entry) for entry in json.loads(text)]
    except (ValueError, TypeError):
        raise CanariesError("is not a list of canaries in JSON, each with name, prompt, honest and exploit") from None


class CanarySet:
    """The canaries that this model can encode, and their scores at the start.

    `tolerance` is the largest change of a raw score without a change of the weights.
    """

    def __init__(self, canaries: Sequence[Canary], encode: SampleEncoder, identity: Identity, tolerance: float) -> None:
        self._identity = identity
        self._tolerance = tolerance
        rows: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        for canary in canaries:
            with contextlib.suppress(SampleError):  # for example too long for this model
                honest, exploit = (
                    encode(Sample(prompt=canary.prompt, response=r)).ids for r in (canary.honest, canary.exploit)
                )
                rows[canary.name] = honest, exploit
        self._rows = rows
        self.first: tuple[CanaryResult, ...] = ()
        self.latest: tuple[CanaryResult, ...] = ()

    def score_first(self, scorer: Scorer) -> None:
        """Score the canaries for the first time, without a batcher. Without these scores they are never compared."""
        if not self._rows:
            return
        flat = tuple(ids for pair in self._rows.values() for ids in pair)
        with contextlib.suppress(ScorerError):
            self.first = self.latest = self._paired(
                [self._identity.raw(row) for row in scorer.score(TokenBatch(flat)).rows]
            )

    async def rescore(self, batcher: Batcher) -> list[str]:
        """Score the canaries again, without the score cache. Return the names of those whose scores have changed.

        Raise `ServiceError` where they cannot be scored now, which means nothing for the weights.
        """
        flat = [ids for pair in self._rows.values() for ids in pair]
        outcomes = await batcher.score(flat, use_cache=False) if self.first else []
        if not outcomes or not all(isinstance(outcome, RowScored) for outcome in outcomes):
            return []
        self.latest = self._paired([self._identity.raw(o.heads) for o in outcomes if isinstance(o, RowScored)])
        return [a.name for a, b in zip(self.first, self.latest, strict=True) if self._differ(a, b)]

    async def run_periodically(self, batcher: Batcher, watcher: RunWatcher, every_s: float) -> None:
        """Rescore until cancelled, and report canaries whose scores have changed."""
        while True:
            await asyncio.sleep(every_s)
            with contextlib.suppress(ServiceError):
                if names := await self.rescore(batcher):
                    alert = Alert(CANARY, "page", self.largest_change, CANARY_THRESHOLD, None, tuple(names))
                    watcher.report(CANARIES, alert)

    @property
    def failing(self) -> tuple[CanaryResult, ...]:
        """Canaries whose exploit scored at least as high as the honest answer at start, or whose scores are not finite."""
        return failing(self.first)

    @property
    def largest_change(self) -> float:
        """Largest change of a score since the start, in multiples of the tolerance."""
        pairs = zip(self.first, self.latest, strict=True)
        changes = [max(abs(a.honest - b.honest), abs(a.exploit - b.exploit)) for a, b in pairs]
        return max(changes, default=0.0) / self._tolerance

    def _paired(self, raw: Sequence[float]) -> tuple[CanaryResult, ...]:
        pairs = zip(self._rows, raw[::2], raw[1::2], strict=True)
        return tuple(CanaryResult(name, honest, exploit) for name, honest, exploit in pairs)

    def _differ(self, a: CanaryResult, b: CanaryResult) -> bool:
        # Written so that NaN differs from everything.
        return not (abs(a.honest - b.honest) <= self._tolerance and abs(a.exploit - b.exploit) <= self._tolerance)

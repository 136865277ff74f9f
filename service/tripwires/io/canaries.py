"""A private set of pairs, an honest answer and an exploit each, scored at start and again and again.

What a model thinks of them is a figure of its worth: an exploit that scores above the honest answer is one that a policy will
find. And it cannot change: other scores of the same weights mean that somebody or something has changed them. Knows the
batcher's door; what it finds is told to `changed`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rewardserve.model.backends import Identity, SampleEncoder
from rewardserve.model.conversation import Sample, SampleError
from rewardserve.model.scorer import ScorerError, TokenBatch
from rewardserve.model.text.text_files import TextDecodeError, decode_text
from rewardserve.service.errors import ServiceError
from rewardserve.service.inference.batcher import Batcher
from rewardserve.service.inference.outcomes import RowScored
from rewardserve.service.storage.files import read_bounded

SHIPPED = Path(__file__).parents[1] / "canaries.json"


class CanariesError(Exception):
    """The file of canaries cannot be used; the message says which and why."""


@dataclass(frozen=True, slots=True)
class Canary:
    """A prompt with two answers; the honest one is to score higher."""

    name: str
    prompt: str
    honest: str
    exploit: str


@dataclass(frozen=True, slots=True)
class CanaryResult:
    """What one canary scored, raw."""

    name: str
    honest: float
    exploit: float

    @property
    def margin(self) -> float:
        """How far the honest answer is ahead; below zero, the exploit pays."""
        return self.honest - self.exploit


_MOST_BYTES = 16 * 2**20


def failing(results: Sequence[CanaryResult]) -> tuple[CanaryResult, ...]:
    """Canaries whose exploit pays: a policy that is trained against this model will find it."""
    return tuple(each for each in results if not each.margin > 0.0)


def read(path: Path = SHIPPED) -> list[Canary]:
    """Raise `CanariesError`."""
    try:
        return [Canary(**entry) for entry in json.loads(decode_text(read_bounded(path, _MOST_BYTES)))]
    except TextDecodeError as error:
        raise CanariesError(f"canaries {path} cannot be read: {error}") from None
    except (OSError, ValueError, TypeError) as error:
        raise CanariesError(f"canaries {path} cannot be read: {type(error).__name__}") from None


class CanarySet:
    """The pairs that this model can encode, and what they scored at the start.

    `allowed` is by how much a raw score may change without another model behind it.
    """

    def __init__(self, canaries: Sequence[Canary], encode: SampleEncoder, identity: Identity, allowed: float) -> None:
        self._identity = identity
        self._allowed = allowed
        rows: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}
        for canary in canaries:
            with contextlib.suppress(SampleError):  # too long for this model, say
                honest, exploit = (
                    encode(Sample(prompt=canary.prompt, response=r)).ids for r in (canary.honest, canary.exploit)
                )
                rows[canary.name] = honest, exploit
        self._rows = rows
        self.first: tuple[CanaryResult, ...] = ()
        self.latest: tuple[CanaryResult, ...] = ()

    def begin(self, score: Callable[[TokenBatch], Sequence[float]]) -> None:
        """Score them for the first time, with the model itself. They stay silent where it fails."""
        if not self._rows:
            return
        flat = tuple(ids for pair in self._rows.values() for ids in pair)
        with contextlib.suppress(ScorerError):
            self.first = self.latest = self._paired(score(TokenBatch(flat)))

    async def again(self, batcher: Batcher) -> list[str]:
        """Score them once more, past every cache. The names of those whose scores have changed.

        Raise `ServiceError` where there was no score to be had: that says nothing of the weights.
        """
        flat = [ids for pair in self._rows.values() for ids in pair]
        outcomes = await batcher.score(flat, use_cache=False) if self.first else []
        if not outcomes or not all(isinstance(outcome, RowScored) for outcome in outcomes):
            return []
        self.latest = self._paired([self._identity.raw(o.heads) for o in outcomes if isinstance(o, RowScored)])
        return [a.name for a, b in zip(self.first, self.latest, strict=True) if self._differ(a, b)]

    async def run_periodically(
        self, batcher: Batcher, every_s: float, changed: Callable[[list[str], float], None]
    ) -> None:
        """For ever: `changed` hears of canaries that do not sing as at the start, and of the largest difference."""
        while True:
            await asyncio.sleep(every_s)
            with contextlib.suppress(ServiceError):
                if names := await self.again(batcher):
                    changed(names, self.largest_change)

    @property
    def failing(self) -> tuple[CanaryResult, ...]:
        """Those of the start whose exploit scored at least as high as the honest answer, or whose scores are not finite."""
        return failing(self.first)

    @property
    def largest_change(self) -> float:
        """Of any score since the start, in multiples of what is allowed."""
        pairs = zip(self.first, self.latest, strict=True)
        changes = [max(abs(a.honest - b.honest), abs(a.exploit - b.exploit)) for a, b in pairs]
        return max(changes, default=0.0) / self._allowed

    def _paired(self, raw: Sequence[float]) -> tuple[CanaryResult, ...]:
        pairs = zip(self._rows, raw[::2], raw[1::2], strict=True)
        return tuple(CanaryResult(name, honest, exploit) for name, honest, exploit in pairs)

    def _differ(self, a: CanaryResult, b: CanaryResult) -> bool:
        # Written so that NaN differs from everything.
        return not (abs(a.honest - b.honest) <= self._allowed and abs(a.exploit - b.exploit) <= self._allowed)

"""The interface between the server and the models: ragged token ids go in, named floats come out.

Standard library only. Every backend is a `Scorer`; whoever calls one needs to know nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

HeadScores = Mapping[str, float]
"""The raw value of each named head for one row. May hold NaN or infinity: the caller checks.

Where the backend knows it, `DISTANCE` is one more entry. It is no head, and is not for those who are scored.
"""

DISTANCE = "distance"
"""How unlike those of the calibration a row's hidden state is, as `hidden` measures it; always finite. No head may
have this name."""


class ScorerError(Exception):
    """The backend could not score a batch. Nothing is known about any of its rows."""


class OutOfMemory(ScorerError):
    """The batch did not fit. A smaller one may."""


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Rows of token ids, ragged, none empty. The backend pads, packs or shares as it likes."""

    rows: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        """Raise ValueError on an empty batch or an empty row: both are bugs of the caller."""
        if not self.rows or not all(self.rows):
            raise ValueError("a batch has at least one row and no empty row")

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self.rows)

    @property
    def n_tokens(self) -> int:
        """How many real tokens there are, before any padding or sharing."""
        return sum(map(len, self.rows))


@dataclass(frozen=True, slots=True)
class BatchScores:
    """What a backend answers: one entry a row, in order, and what that took.

    `tokens_computed` counts positions that went through the network and were real, `tokens_padding`
    those that were not.
    """

    rows: tuple[HeadScores, ...]
    tokens_computed: int
    tokens_padding: int = 0


class Scorer(Protocol):
    """One loaded model. Called from as many threads at a time as it says."""

    @property
    def max_tokens(self) -> int:
        """The longest row this model can read."""
        ...

    @property
    def shares_prefixes(self) -> bool:
        """Whether tokens that rows of one batch begin with in common are computed once, and equal rows once."""
        ...

    @property
    def concurrency(self) -> int:
        """How many calls of `score` may run at one time. More than one: the next is prepared while one is computed."""
        ...

    @property
    def streams(self) -> bool:
        """Whether batches that run at one time are computed together. Then none is worth holding back for, and how long one
        took says nothing of its size.
        """
        ...

    @property
    def is_alive(self) -> bool:
        """False once nothing will be scored any more, and only another process can help."""
        ...

    def score(self, batch: TokenBatch) -> BatchScores:
        """Score every row, in order. Raise `OutOfMemory`, another `ScorerError`, or return one entry a row."""
        ...

    def cost(self, lengths: Sequence[int]) -> int:
        """Token positions that a batch of rows with these lengths would take, padding included.

        Where prefixes are shared, a length is what the row adds to the batch; 0 for one that is there already.
        """
        ...

    def close(self) -> None:
        """Free what the model holds. The scorer is not called again."""
        ...

"""Interface between the server and the models: ragged token ids in, named floats out.

Standard library only. Every backend is a `Scorer`; its callers depend on nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

HeadScores = Mapping[str, float]
"""The raw value of each named head for one row. May hold NaN or infinity: the caller checks.

Where the backend computes it, `DISTANCE` is one more entry. It is no head, and is not part of a reply: a policy could optimise it.
"""

DISTANCE = "distance"
"""Distance of a row's hidden state from those of the calibration (`hidden_reference`); always finite. No head may
have this name."""


def weighted_sum(heads: Sequence[tuple[str, float]], scores: HeadScores) -> float:
    """Raw score of a row from its (name, weight) of heads. Raise `KeyError` where a head is missing."""
    raw = 0.0
    for name, weight in heads:
        raw += weight * scores[name]
    return raw


class ScorerError(Exception):
    """The backend could not score a batch; no row of it has a score."""


class OutOfMemory(ScorerError):
    """The batch did not fit into memory; a smaller one may."""


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Ragged rows of token ids, none empty. The backend decides on padding, packing and sharing."""

    rows: tuple[tuple[int, ...], ...]

    def __post_init__(self) -> None:
        """Raise ValueError on an empty batch or an empty row: both are bugs of the caller."""
        if not self.rows or not all(self.rows):
            raise ValueError("a batch has at least one row and no empty row")

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.rows)

    @property
    def n_tokens(self) -> int:
        """Number of real tokens, before any padding or sharing."""
        return sum(map(len, self.rows))


@dataclass(frozen=True, slots=True)
class BatchScores:
    """Scores of a batch: one entry a row, in order, and the computed token positions.

    `tokens_computed` counts the real positions that went through the network, `tokens_padding` the padding.
    """

    rows: tuple[HeadScores, ...]
    tokens_computed: int
    tokens_padding: int = 0


class Scorer(Protocol):
    """One loaded model. At most `concurrency` threads call it at a time."""

    @property
    def max_tokens(self) -> int:
        """The longest row that this model can read, in tokens."""
        ...

    @property
    def pads_rows(self) -> bool:
        """Whether a batch takes as many token positions as its longest row for every row, and not the sum of their lengths."""
        ...

    @property
    def shares_prefixes(self) -> bool:
        """Whether common prefixes and equal rows of a batch are computed once."""
        ...

    @property
    def concurrency(self) -> int:
        """Number of calls of `score` that may run at a time. More than 1: the next is prepared while one is computed."""
        ...

    @property
    def streams(self) -> bool:
        """Whether batches that run at a time are computed together (continuous batching).

        Then no row need wait for a fuller batch, and the duration of a batch does not depend on its size alone.
        """
        ...

    @property
    def is_alive(self) -> bool:
        """False once the model cannot score any more and only a restart of the process helps."""
        ...

    def score(self, batch: TokenBatch) -> BatchScores:
        """Score every row, in order. Raise `OutOfMemory`, another `ScorerError`, or return one entry a row."""
        ...

    def close(self) -> None:
        """Free the model's memory. The scorer is not called again."""
        ...

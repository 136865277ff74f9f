"""Batch of responses as token ids, and their counts.

`B` responses, `T` token positions, `V` symbols of the vocabulary. Independent of rewards and of the policy.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from gym import vocabulary
from gym.vocabulary import EOS, SIZE

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Responses:
    """Token ids, every position after the end filled with EOS, and the prompt of each response.

    A row without any EOS was cut at the cap. Do not write to the arrays.
    """

    tokens_BT: IntArray
    prompt_ids_B: IntArray

    def __len__(self) -> int:
        """Number of responses."""
        return len(self.tokens_BT)

    @cached_property
    def lengths_B(self) -> IntArray:
        """Words in each response, without EOS."""
        return np.asarray((self.tokens_BT != EOS).sum(axis=1), dtype=np.int64)

    @cached_property
    def ended_B(self) -> BoolArray:
        """Whether each response reached its EOS before the cap."""
        return np.asarray(self.lengths_B < self.tokens_BT.shape[1])

    @cached_property
    def counts_BV(self) -> FloatArray:
        """Count of each symbol in each response: EOS once or not at all."""
        offsets_B1 = np.arange(len(self))[:, None] * SIZE
        flat = np.bincount((self.tokens_BT + offsets_B1).ravel(), minlength=len(self) * SIZE)
        counts_BV = flat.reshape(len(self), SIZE).astype(np.float64)
        counts_BV[:, EOS] = self.ended_B
        return counts_BV

    @cached_property
    def repetition_B(self) -> FloatArray:
        """1 - distinct trigrams / trigrams; 0 where a response has fewer than three words."""
        total_B = np.maximum(self.lengths_B - 2, 0)
        first, second, third = (self.tokens_BT[:, i : self.tokens_BT.shape[1] - 2 + i] for i in range(3))
        code = (first * SIZE + second) * SIZE + third
        code = np.sort(np.where(third == EOS, -1, code), axis=1)  # no word follows EOS
        new = np.diff(code, axis=1, prepend=-1) != 0
        return np.where(total_B > 0, 1.0 - new.sum(axis=1) / np.maximum(total_B, 1), 0.0)

    def count_B(self, kind: str) -> FloatArray:
        """Number of words of one class in each response."""
        return np.asarray(self.counts_BV[:, vocabulary.ids(kind)].sum(axis=1))

    def rows(self) -> tuple[tuple[int, ...], ...]:
        """Ragged token ids with EOS if reached, so that no row is empty."""
        ends_B = self.lengths_B + self.ended_B
        return tuple(tuple(row[:end].tolist()) for row, end in zip(self.tokens_BT, ends_B, strict=True))

    def texts(self) -> list[str]:
        """Every response as text."""
        return [vocabulary.render(row) for row in self.rows()]

    def take(self, index_N: IntArray) -> Responses:
        """Select responses, in the order of the indices."""
        return Responses(self.tokens_BT[index_N], self.prompt_ids_B[index_N])


def from_rows(rows: tuple[tuple[int, ...], ...], cap: int) -> Responses:
    """Convert ragged token ids to an array of `cap` positions, all with prompt 0."""
    tokens_BT = np.full((len(rows), cap), EOS, dtype=np.int64)
    for row, tokens in zip(tokens_BT, rows, strict=True):
        row[: len(tokens)] = tokens
    return Responses(tokens_BT, np.zeros(len(rows), dtype=np.int64))


def joined(parts: list[Responses]) -> Responses:
    """Concatenate several batches, in order."""
    return Responses(
        np.concatenate([part.tokens_BT for part in parts]), np.concatenate([part.prompt_ids_B for part in parts])
    )

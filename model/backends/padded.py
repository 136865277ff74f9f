"""Score left-padded batches: the reference path, and the one for architectures that cannot be packed.

Knows the network and ids, no requests. Shapes: B rows, T tokens, H heads.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from rewardserve.model.backends.length_classes import LengthClasses
from rewardserve.model.backends.output_columns import OutputColumns
from rewardserve.model.backends.scorer_errors import as_scorer_errors
from rewardserve.model.hidden_reference import HiddenReference
from rewardserve.model.network import RewardNetwork
from rewardserve.model.padding import left_pad
from rewardserve.model.scorer import BatchScores, TokenBatch


class PaddedScorer:
    """Scorer with one forward a batch and length class, padded on the left to its longest row.

    `hidden`: reference for the column `DISTANCE`. `one_by_one`: every row has a separate forward, so its score has the same
    bits in every batch.
    """

    shares_prefixes = False
    concurrency = 1
    streams = False
    is_alive = True

    def __init__(
        self,
        network: RewardNetwork,
        *,
        pad_id: int,
        max_tokens: int,
        hidden: HiddenReference | None = None,
        one_by_one: bool = False,
    ) -> None:
        self._network, self._pad_id, self._max_tokens = network, pad_id, max_tokens
        self._columns = OutputColumns(network.head_names, hidden)
        self._one_by_one = one_by_one
        self._length_classes = LengthClasses.of_config(network.config)

    @property
    def name(self) -> str:
        """Name of the engine."""
        return "one_by_one" if self._one_by_one else "padded"

    def clear_cache(self) -> None:
        """Do nothing: this engine has no cache."""

    @property
    def pads_rows(self) -> bool:
        """Whether rows are in one forward."""
        return not self._one_by_one

    @property
    def max_tokens(self) -> int:
        """The longest row."""
        return self._max_tokens

    def score(self, batch: TokenBatch) -> BatchScores:
        """Score every row, in order. Raise `OutOfMemory` or `ScorerError`."""
        values: list[Any] = [None] * len(batch)
        n_padding = 0
        for indices in self._forwards(batch.rows):
            columns, padding = self._score_together([batch.rows[i] for i in indices])
            n_padding += padding
            for i, row in zip(indices, columns, strict=True):
                # The padding may be the cause: 0 * NaN is NaN.
                if len(indices) > 1 and not all(map(math.isfinite, row)):
                    values[i] = self._score_together([batch.rows[i]])[0][0]
                else:
                    values[i] = row
        rows = tuple(dict(zip(self._columns.names, row, strict=True)) for row in values)
        return BatchScores(rows, tokens_computed=batch.n_tokens, tokens_padding=n_padding)

    def _forwards(self, rows: Sequence[tuple[int, ...]]) -> Iterator[list[int]]:
        """Yield the indices of rows that share a forward."""
        if self._one_by_one:
            yield from ([i] for i in range(len(rows)))
            return
        length_classes: dict[int, list[int]] = {}
        for i, row in enumerate(rows):
            length_classes.setdefault(self._length_classes.of(len(row)), []).append(i)
        yield from length_classes.values()

    @torch.inference_mode()
    def _score_together(self, rows: Sequence[tuple[int, ...]]) -> tuple[list[list[float]], int]:
        """Return the columns of each row, and the number of padding positions."""
        ids_BT, mask_BT = left_pad(rows, self._pad_id)
        device = self._network.device
        padding = ids_BT.numel() - sum(map(len, rows))
        with as_scorer_errors(ids_BT.numel()):
            out = self._network(ids_BT.to(device), mask_BT.to(device) if padding else None)
            return self._columns.of(out.scores_BH, out.last_hidden_BD).cpu().tolist(), padding

    def close(self) -> None:
        """Free the weights."""
        del self._network

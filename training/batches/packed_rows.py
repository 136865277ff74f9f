"""Lay the sequences of a batch one after the other in one row: no padding, and each common prefix once.

The tree of common prefixes is that of the packed engine. Knows ids and tensors, no network.
Shapes: B sequences, N tokens of the row, K keys of all segments.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from rewardserve.model.backends.packed.layout import PrefixedTree, lay_out
from rewardserve.model.backends.packed.tree import Row, build_prefix_tree, without_sharing


@dataclass(slots=True, eq=False)
class PackedRows:
    """Positions and attention of a packed row. A segment of queries attends to its ancestors in the tree, and causally to itself.

    `last_B` is the index of each sequence's last token. `keys_K` are the keys of every segment, one segment after the other;
    None: each segment has only those of its queries. `ends_q` and `ends_k` are where the segments begin and end, as
    variable-length attention reads them. `spans_B` are the ranges of each sequence's
    tokens in the row. `windows` collects the sliding windows that layers asked for.
    """

    position_ids_1N: Tensor
    last_B: Tensor
    keys_K: Tensor | None
    n_queries: tuple[int, ...]
    n_keys: tuple[int, ...]
    ends_q: Tensor
    ends_k: Tensor
    spans_B: tuple[tuple[tuple[int, int], ...], ...]
    windows: set[int] = field(default_factory=set)
    masks: dict[tuple[int, int, int | None], Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> PackedRows:
        """Copy to the device, as accelerate does with tensors."""
        return self._map(lambda x: x.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PackedRows:
        """Pin, as a `DataLoader` does with tensors."""
        return self._map(lambda x: x.pin_memory())

    def mask(self, n_queries: int, n_keys: int, window: int | None) -> Tensor:
        """Attended keys of a segment, `(Q, K)`: its queries are the last positions of its keys. Made once for all layers."""
        at = n_queries, n_keys, window
        if at not in self.masks:
            before = n_keys - n_queries
            sees_QK = torch.ones(n_queries, n_keys, dtype=torch.bool, device=self.last_B.device).tril(before)
            self.masks[at] = sees_QK if window is None else sees_QK.triu(before - window + 1)
        return self.masks[at]

    def _map(self, change: Any) -> PackedRows:
        tensors = ("position_ids_1N", "last_B", "ends_q", "ends_k")
        keys_K = None if self.keys_K is None else change(self.keys_K)
        return replace(self, **{name: change(getattr(self, name)) for name in tensors}, keys_K=keys_K, masks={})


def pack(rows: Sequence[Row], *, shares_prefixes: bool) -> tuple[Tensor, PackedRows]:
    """`(input_ids_1N, PackedRows)` of distinct rows; without `shares_prefixes` every row is computed whole."""
    layout = lay_out([PrefixedTree((build_prefix_tree if shares_prefixes else without_sharing)(rows))])
    spans = layout.every.self_spans
    n_queries = tuple(span.queries[1] - span.queries[0] for span in spans)
    n_keys = tuple(span.n_keys for span in spans)
    keys_K = None
    if n_keys != n_queries:
        keys_K = torch.cat([torch.arange(keys.first, keys.last) for span in spans for keys in span.chain])
    packed = PackedRows(
        torch.tensor([layout.positions]),
        torch.tensor([layout.scored[at] for at in layout.rows]),
        keys_K,
        n_queries,
        n_keys,
        _ends(n_queries),
        _ends(n_keys),
        tuple(tuple((keys.first, keys.last) for keys in layout.last.self_spans[at].chain) for at in layout.rows),
    )
    return torch.tensor([layout.ids]), packed


def _ends(lengths: Sequence[int]) -> Tensor:
    return torch.tensor([0, *accumulate(lengths)], dtype=torch.int32)

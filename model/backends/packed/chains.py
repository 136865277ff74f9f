"""Attention of a plan in one call a layer, by the kernels in C: each query attends to its whole chain in one softmax.

The other kernels attend to a segment and to its prefixes separately and merge the two; this one iterates over the chain.
Shapes: Q queries, H query heads, G key heads, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rewardserve.model.backends.native import BLOCK_SIZE, Kernels, n_blocks
from rewardserve.model.backends.packed.layout import AttentionPlan, KeyRange

_MOST_COLUMNS = 16_384
"""Columns of a chain, padded to blocks: a block of queries keeps all its scores, 256 bytes a column and thread."""
_LONGEST_CHAIN = 256
"""Key ranges of a chain, as in `kernels.h`."""


@dataclass(frozen=True, slots=True)
class KernelTables:
    """Tables of a plan in the kernel's format, built once for all layers. The addresses of `ranges` differ by layer."""

    ranges: tuple[KeyRange, ...]
    steps_before: tuple[int, ...]
    segments_S4: Tensor
    chains: Tensor
    blocks_B2: Tensor
    n_columns: int


def kernel_tables(plan: AttentionPlan) -> KernelTables | None:
    """Build the kernel's tables of a plan; None where the plan exceeds the kernel's limits."""
    number: dict[KeyRange, int] = {}
    steps_before: list[int] = []
    segments: list[tuple[int, int, int, int]] = []
    chains: list[int] = []
    blocks: list[tuple[int, int]] = []
    n_steps, most = 0, 0
    for self_spans in plan.self_spans:
        for keys in self_spans.chain:
            if keys not in number:
                number[keys] = len(number)
                steps_before.append(n_steps)
                n_steps += _steps(keys)
        (first, last), start = self_spans.queries, len(chains)
        blocks.extend((len(segments), at) for at in range(first, last, BLOCK_SIZE))
        chains.extend(number[keys] for keys in self_spans.chain)
        segments.append((first, last, start, len(chains)))
        most = max(most, sum(map(_steps, self_spans.chain)))
    if (
        BLOCK_SIZE * most > _MOST_COLUMNS
        or max(len(self_spans.chain) for self_spans in plan.self_spans) > _LONGEST_CHAIN
    ):
        return None
    return KernelTables(
        tuple(number),
        tuple(steps_before),
        torch.tensor(segments),
        torch.tensor(chains),
        torch.tensor(blocks),
        BLOCK_SIZE * most,
    )


def attend_chains(
    kernels: Kernels,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    given: Sequence[tuple[Tensor, Tensor]],
    tables: KernelTables,
    scale: float,
) -> Tensor:
    """Attention `(1, Q, H, E)` of inputs `(1, heads, tokens, E)`, float32 on the CPU, dense in E."""
    ranges = []
    for keys, before in zip(tables.ranges, tables.steps_before, strict=True):
        k, v = (key, value) if keys.given is None else given[keys.given]
        ranges.append(
            (k.data_ptr() + 4 * keys.first * k.stride(2), v.data_ptr() + 4 * keys.first * v.stride(2),
             k.stride(2), k.stride(1), v.stride(2), v.stride(1), keys.last - keys.first, before)
        )  # fmt: skip
    out_QHE = kernels.attend(
        query[0], key.shape[1], scale, torch.tensor(ranges), tables.segments_S4, tables.chains, tables.blocks_B2,
        tables.n_columns,
    )  # fmt: skip
    return out_QHE[None]


def _steps(keys: KeyRange) -> int:
    return n_blocks(keys.last - keys.first)

"""Pad ragged rows to rectangles, and find the last real token of each row.

Shapes: B rows, T tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def left_pad(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Pad rows of ids on the left: `(input_ids_BT, mask_BT)`, int64. The mask is 1 at real tokens."""
    width = max(map(len, rows))
    ids_BT = torch.full((len(rows), width), pad_id)
    mask_BT = torch.zeros((len(rows), width), dtype=torch.int64)
    for i, row in enumerate(rows):
        ids_BT[i, width - len(row) :] = torch.tensor(row)
        mask_BT[i, width - len(row) :] = 1
    return ids_BT, mask_BT


def position_ids(mask_BT: Tensor) -> Tensor:
    """`cumsum(mask) - 1`, set to 1 under padding, so that padding on the left moves no real token."""
    return (mask_BT.long().cumsum(-1) - 1).masked_fill(mask_BT == 0, 1)


def last_index(mask_BT: Tensor) -> Tensor:
    """Index of each row's last real token, `T - 1 - argmax(flip(mask))`, for padding on either side."""
    return mask_BT.shape[-1] - 1 - mask_BT.long().flip(-1).argmax(-1)

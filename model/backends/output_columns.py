"""What an engine says of a row: its heads and, where the checkpoint knows how usual hidden states lie, how far from those it is.

Shapes: B rows, D hidden width, H heads, C columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rewardserve.model.hidden_reference import HiddenReference
from rewardserve.model.scorer import DISTANCE


class OutputColumns:
    """`names` are those of the heads, with `DISTANCE` behind them where there is a `reference`."""

    def __init__(self, head_names: tuple[str, ...], reference: HiddenReference | None) -> None:
        self.names = head_names if reference is None else (*head_names, DISTANCE)
        self._reference = reference

    def of(self, scores_BH: Tensor, hidden_BD: Tensor) -> Tensor:
        """`(B, C)`, of the hidden states that the heads have read. The scores are as they were, bit by bit."""
        if self._reference is None:
            return scores_BH
        return torch.cat([scores_BH, self._reference.log_distance(hidden_BD)[:, None].to(scores_BH.device)], dim=1)

"""Output columns of an engine for a row: its heads and, where the checkpoint has a hidden-state reference, the distance to it.

Shapes: B rows, D hidden width, H heads, C columns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rewardserve.model.hidden_reference import HiddenReference
from rewardserve.model.scorer import DISTANCE


class OutputColumns:
    """Columns of a score. `names` are those of the heads, followed by `DISTANCE` where there is a `reference`."""

    def __init__(self, head_names: tuple[str, ...], reference: HiddenReference | None) -> None:
        self.names = head_names if reference is None else (*head_names, DISTANCE)
        self._reference = reference

    def of(self, scores_BH: Tensor, hidden_BD: Tensor) -> Tensor:
        """Columns `(B, C)` from the scores and the hidden states that the heads have read. The scores keep their bits."""
        if self._reference is None:
            return scores_BH
        return torch.cat([scores_BH, self._reference.log_distance(hidden_BD)[:, None].to(scores_BH.device)], dim=1)

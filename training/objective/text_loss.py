"""Language-model loss on preferred responses, by the kept output layer: a regulariser of the hidden states (GRM, arXiv 2406.10216).

Shapes: K predicted tokens, D width, R responses.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

_CHUNK = 1024
"""Tokens whose logits are in memory at a time; the backward computes them again."""


def text_loss(hidden_KD: Tensor, head: nn.Linear, label_K: Tensor, row_K: Tensor, weight_R: Tensor) -> Tensor:
    """Sum over responses of weight times the mean negative log-likelihood of the tokens of the response."""
    n_R = torch.bincount(row_K, minlength=len(weight_R)).clamp_min(1)
    weight_K = (weight_R / n_R)[row_K]
    loss = hidden_KD.new_zeros((), dtype=torch.float32)
    for first in range(0, len(label_K), _CHUNK):
        part = slice(first, first + _CHUNK)
        loss = loss + checkpoint(
            _weighted_nll, hidden_KD[part], head, label_K[part], weight_K[part], use_reentrant=False
        )
    return loss


def _weighted_nll(hidden_KD: Tensor, head: nn.Linear, label_K: Tensor, weight_K: Tensor) -> Tensor:
    logits_KV = head(hidden_KD.to(head.weight.dtype)).float()
    return (F.cross_entropy(logits_KV, label_K, reduction="none") * weight_K).sum()

"""A length head beside each quality head during training, as in ODIN (arXiv 2402.07319). It is never exported.

The ranking loss has the sum of both heads; the length head learns length, and the quality head is kept from it. Shapes: H heads, D
width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rewardserve.model.network import RewardNetwork


def add_length_heads(network: RewardNetwork, seed: int) -> None:
    """Append a random length head for each head, in place: rows H to 2H of `heads`, N(0, 1/(D+1)) as fresh heads."""
    weight_HD = network.heads.weight.detach()
    generator = torch.Generator().manual_seed(seed)
    fresh_HD = torch.randn(weight_HD.shape, generator=generator) / (weight_HD.shape[1] + 1) ** 0.5
    _replace_heads(network, torch.cat([weight_HD, fresh_HD.to(weight_HD)]))
    network.bias_H = torch.cat([network.bias_H, torch.zeros_like(network.bias_H)])


def drop_length_heads(network: RewardNetwork) -> None:
    """Remove the length heads, in place. Does nothing without any."""
    n_heads = len(network.head_names)
    if network.heads.out_features > n_heads:
        _replace_heads(network, network.heads.weight.detach()[:n_heads])
        network.bias_H = network.bias_H[:n_heads]


def _replace_heads(network: RewardNetwork, weight: Tensor) -> None:
    heads = nn.Linear(weight.shape[1], weight.shape[0], bias=False, dtype=torch.float32, device=weight.device)
    heads.weight.data.copy_(weight)
    network.heads = heads


def overlap(weight: Tensor) -> Tensor:
    """|cosine| of each quality head and its length head, `(H,)`: ODIN's |W_Q W_L'| of normalised weights."""
    quality_HD, length_HD = weight.chunk(2)
    return F.cosine_similarity(quality_HD, length_HD, dim=1).abs()

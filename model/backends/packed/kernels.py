"""Attention of queries to keys with the log-sum-exp of their scores, so that attention over parts of the keys can be merged.

Shapes: Q queries, K keys, H query heads, G key heads (H is a multiple of G), E head width. Inputs are
`(1, heads, tokens, E)` as in transformers; outputs are `(1, H, Q, E)` and `(1, H, Q)` in float32.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

Kernel = Callable[[Tensor, Tensor, Tensor, bool, float], tuple[Tensor, Tensor]]
"""(query, key, value, is_causal, scale) -> (output, log-sum-exp). Causal only for as many queries as keys."""

_QUERIES_AT_ONCE = 256
"""Queries at once in the dense fallback: their scores take H * 256 * K floats."""


def kernel_for(device: torch.device) -> Kernel:
    """The fused kernel of this device that returns its log-sum-exp."""
    return _efficient if device.type == "cuda" else _flash_cpu


def _flash_cpu(query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, 0.0, is_causal, scale=scale
    )
    return out, lse


def _efficient(query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scale: float) -> tuple[Tensor, Tensor]:
    n_repeat = query.shape[1] // key.shape[1]
    if n_repeat > 1:
        key, value = (x.repeat_interleave(n_repeat, dim=1) for x in (key, value))
    out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        query, key, value, None, True, 0.0, is_causal, scale=scale
    )
    return out, lse[..., : query.shape[2]]  # the kernel pads its queries to a multiple of 32


def dense(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    first_position: int,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    """Compute causal attention without a fused kernel, for sliding windows and capped scores: `(1, H, Q, E)`.

    Keys are at positions 0 to K-1, queries from `first_position` on. With a window of w a query attends to the last w keys,
    the one at its position included. Scores are capped as `softcap * tanh(score / softcap)` (Gemma 2, arXiv 2408.00118,
    section 2).
    """
    outs = []
    for at in range(0, query.shape[2], _QUERIES_AT_ONCE):
        some = query[:, :, at : at + _QUERIES_AT_ONCE]
        first, last = first_position + at, first_position + at + some.shape[2]
        oldest = max(0, first - window + 1) if window else 0
        at_Q = torch.arange(first, last, device=query.device)
        at_K = torch.arange(oldest, last, device=query.device)
        sees_QK = at_K <= at_Q[:, None]
        if window:
            sees_QK &= at_K > at_Q[:, None] - window
        outs.append(_masked(some, key[:, :, oldest:last], value[:, :, oldest:last], sees_QK, scale, softcap))
    return torch.cat(outs, dim=2)


def _masked(query: Tensor, key: Tensor, value: Tensor, sees_QK: Tensor, scale: float, softcap: float | None) -> Tensor:
    if softcap is None:
        return F.scaled_dot_product_attention(query, key, value, attn_mask=sees_QK, scale=scale, enable_gqa=True)
    n_repeat = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(n_repeat, dim=1) for x in (key, value))
    scores = softcap * torch.tanh(query @ key.transpose(2, 3) * (scale / softcap))
    weights = scores.masked_fill(~sees_QK, float("-inf")).softmax(dim=-1, dtype=torch.float32)
    return weights.to(query.dtype) @ value

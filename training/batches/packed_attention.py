"""Attention of a layer over a packed row, with gradients, for architectures that call transformers' attention interface.

On a CPU one fused call a segment; on CUDA in half precision torch's variable-length attention computes all segments in one call.
Shapes: N tokens of the row, Q queries and K keys of a segment, H query heads, G key heads, E head width.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedConfig, PreTrainedModel

from rewardserve.model.backends.packed.attention import UnsupportedArchitecture
from rewardserve.model.backends.packed.kernels import dense
from rewardserve.model.backends.packed.scorer import is_windowed
from rewardserve.model.network import PACKED_ROWS, RewardNetwork, router_loss_weight
from rewardserve.model.padding import left_pad
from rewardserve.training.batches.packed_rows import PackedRows, pack

NAME = "rewardserve_packed_training"

_HARMLESS = frozenset({"position_ids", "cache_position", "use_cache", "output_attentions",
                       "output_hidden_states", "output_router_logits", "return_dict", "is_causal"})  # fmt: skip
_HALF = (torch.bfloat16, torch.float16)
_LENGTHS = (5, 40, 23, 61)
"""Tokens of the check's rows behind their common prefix."""
_N_PREFIX = 24
_ROUNDING, _ROUNDING_HALF = 1e-4, 0.1
"""Largest norm of the difference between packed and padded in the check, relative to the norm of the padded one."""


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention function that transformers calls in every layer: `(1, N, H, E)`. Raise `UnsupportedArchitecture`."""
    packed = others.pop(PACKED_ROWS, None)
    if not isinstance(packed, PackedRows):
        raise UnsupportedArchitecture("its layers do not pass the keywords of the forward to their attention")
    unknown = sorted(name for name, given in others.items() if given is not None and name not in _HARMLESS)
    if unknown or attention_mask is not None or others.get("is_causal") is False:
        raise UnsupportedArchitecture(f"its attention needs {', '.join(unknown) or 'a mask, or is not causal'}")
    if sliding_window:
        packed.windows.add(sliding_window)
    if packed.keys_K is not None:
        key, value = key.index_select(2, packed.keys_K), value.index_select(2, packed.keys_K)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    window = sliding_window or None
    if softcap is not None:
        if dropout:
            raise UnsupportedArchitecture("its attention has dropout and capped scores")
        return _capped(query, key, value, packed, scale, window, softcap), None
    # Under autocast the rotation leaves queries and keys in float32; torch's fused attention casts them again.
    autocast = torch.is_autocast_enabled(query.device.type)
    dtype = torch.get_autocast_dtype(query.device.type) if autocast else query.dtype
    if query.is_cuda and dtype in _HALF and not dropout:
        return _varlen(query.to(dtype), key.to(dtype), value.to(dtype), packed, scale, window), None
    return _by_segment(query, key, value, packed, scale, window, dropout), None


# No mask function is registered under this name, so transformers makes no mask.
AttentionInterface.register(NAME, packed_attention)


def _by_segment(
    query: Tensor, key: Tensor, value: Tensor, packed: PackedRows, scale: float, window: int | None, dropout: float
) -> Tensor:
    outs = []
    for q, k, v in _segments(query, key, value, packed):
        n_queries, n_keys = q.shape[2], k.shape[2]
        is_plain = n_queries == n_keys and (window is None or n_keys <= window)
        mask_QK = None if is_plain else packed.mask(n_queries, n_keys, window)
        outs.append(
            F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask_QK, dropout_p=dropout, is_causal=is_plain, scale=scale, enable_gqa=True
            )
        )
    return torch.cat(outs, 2).transpose(1, 2)


def _capped(
    query: Tensor, key: Tensor, value: Tensor, packed: PackedRows, scale: float, window: int | None, softcap: float
) -> Tensor:
    outs = [
        dense(q, k, v, first_position=k.shape[2] - q.shape[2], scale=scale, window=window, softcap=softcap)
        for q, k, v in _segments(query, key, value, packed)
    ]
    return torch.cat(outs, 2).transpose(1, 2)


def _segments(query: Tensor, key: Tensor, value: Tensor, packed: PackedRows) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    parts = query.split(packed.n_queries, 2), key.split(packed.n_keys, 2), value.split(packed.n_keys, 2)
    return zip(*parts, strict=True)


def _varlen(query: Tensor, key: Tensor, value: Tensor, packed: PackedRows, scale: float, window: int | None) -> Tensor:
    """One call for all segments: its causal mask is aligned at the last query and the last key of each."""
    from torch.nn.attention.varlen import varlen_attn

    n_repeat = query.shape[1] // key.shape[1]
    query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
    if n_repeat > 1:
        key, value = key.repeat_interleave(n_repeat, 1), value.repeat_interleave(n_repeat, 1)
    reach = (-1 if window is None else window - 1, 0)
    longest = max(packed.n_queries), max(packed.n_keys)
    out: Tensor = varlen_attn(query, key, value, packed.ends_q, packed.ends_k, *longest, scale=scale, window_size=reach)
    return out[None]


@contextmanager
def packs(network: nn.Module) -> Iterator[None]:
    """Let forwards and backwards of the network inside compute packed rows."""
    configs = list(
        {id(c): c for m in network.modules() if isinstance(c := vars(m).get("config"), PreTrainedConfig)}.values()
    )
    before = [config._attn_implementation for config in configs]
    for config in configs:
        config._attn_implementation = NAME
    try:
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation = name


def may_share_prefixes(network: RewardNetwork) -> bool:
    """Whether a common prefix may be computed once: without dropout, whose noise differs from row to row, and without a
    load-balancing loss, which counts the tokens of every row.
    """
    return not router_loss_weight(network.config) and not any(map(_has_dropout, network.modules()))


def _has_dropout(module: nn.Module) -> bool:
    """Whether the module drops: by one of its numbers, or of the configuration, which some layers read in each forward."""
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return bool(module.p > 0)
    config = None if isinstance(module, PreTrainedModel) else vars(module).get("config")
    numbers = [*vars(module).items(), *(vars(config).items() if isinstance(config, PreTrainedConfig) else ())]
    return any("drop" in name and isinstance(value, float) and value > 0 for name, value in numbers)


def packing_objection(network: RewardNetwork, *, pad_id: int, gradients: bool = True) -> str | None:
    """Reason why the network cannot compute packed rows, or None: a packed batch has other scores or gradients.

    Measured in forward and, with `gradients`, backward on the device, on a few rows of random tokens with a common prefix.
    """
    was_training = network.training
    network.eval()
    try:
        windowed = is_windowed(network.config)
        rows = _check_rows(network)
        ids_1N, packed = pack(rows, shares_prefixes=True)
        ids_BT, mask_BT = left_pad(rows, pad_id)
        padded = _scores_and_gradient(network, ids_BT.to(network.device), mask_BT.to(network.device), None, gradients)
        with packs(network):
            packed = packed.to(network.device)
            found = _scores_and_gradient(network, ids_1N.to(network.device), None, packed, gradients)
        if windowed and not packed.windows:
            return "its layers do not pass the size of their sliding window to the attention"
    except UnsupportedArchitecture as error:
        return str(error)
    except Exception as error:  # foreign model code may raise anything
        return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    finally:
        network.train(was_training)
    allowed = (
        _ROUNDING if next(network.backbone.parameters()).dtype not in _HALF and not _is_autocast() else _ROUNDING_HALF
    )
    for what, a, b in zip(("scores", "gradients"), padded, found, strict=True):
        off = float((a - b).norm() / a.norm().clamp_min(1e-6))
        if not off <= allowed:
            return f"its {what} differ by {off:.1e} from those of padded rows"
    return None


def _is_autocast() -> bool:
    return bool(torch.is_autocast_enabled("cuda") or torch.is_autocast_enabled("cpu"))


def _check_rows(network: RewardNetwork) -> list[tuple[int, ...]]:
    n_ids = network.backbone.get_input_embeddings().num_embeddings
    prefix = [7 * i % n_ids for i in range(1, _N_PREFIX + 1)]
    own = [[(11 + 2 * r) * i % n_ids for i in range(1, n + 1)] for r, n in enumerate(_LENGTHS)]
    return [(*prefix, *ids) for ids in own[:-1]] + [tuple(own[-1])]


def _scores_and_gradient(
    network: RewardNetwork, ids: Tensor, mask: Tensor | None, packed: PackedRows | None, gradients: bool
) -> tuple[Tensor, Tensor]:
    """Scores, and the gradient of the first layer's first trained weights, which passes all layers above."""
    named = network.backbone.named_parameters() if gradients else ()
    trained = [p for n, p in named if p.requires_grad and "embed" not in n]
    with torch.set_grad_enabled(gradients):
        scores_BH = network(ids, mask, packed).scores_BH
        weights_BH = torch.linspace(-1, 1, scores_BH.numel(), device=scores_BH.device).view_as(scores_BH)
        loss = (scores_BH * weights_BH).sum()
        # Two weights: of an adapter's two matrices, the gradient of the first is 0 as long as the second one is.
        found = torch.autograd.grad(loss, trained[:2], allow_unused=True) if trained else (loss,)
    gradient = torch.cat([part.detach().float().flatten() for part in found if part is not None])
    return scores_BH.detach().float(), gradient

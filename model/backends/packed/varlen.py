"""Attention of a plan in a few kernel calls, for devices where one call a segment would cost more than its work.

One call of variable-length flash attention computes all segments, and one call a depth all prefixes of that depth.
Shapes: N tokens, Q queries, H query heads, G key heads, E head width; here tokens come first, `(N, H, E)`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from rewardserve.model.backends.packed.layout import AttentionPlan, Range
from rewardserve.model.backends.packed.transfer import to_device

Varlen = Callable[[Tensor, Tensor, Tensor, "VarlenCall", bool, float], tuple[Tensor, Tensor]]
"""(query, key, value, call, is_causal, scale) -> (output `(Q, H, E)`, log-sum-exp `(H, Q)`)."""


@dataclass(frozen=True, slots=True)
class VarlenCall:
    """Queries and keys of one call, and the ends of its segments. Index None: all, in order."""

    index_Q: Tensor | None
    index_K: Tensor | None
    ends_q: Tensor
    ends_k: Tensor
    longest_q: int
    longest_k: int


@dataclass(frozen=True, slots=True)
class VarlenPlan:
    """A plan, prepared once for all layers: `self_spans`, then one call a depth."""

    self_spans: VarlenCall
    is_causal: bool
    prefix_spans: tuple[VarlenCall, ...]


def prepare_varlen(plan: AttentionPlan, n_keys: int, given: Sequence[int], device: torch.device) -> VarlenPlan:
    """Prepare a plan: `n_keys` tokens are in the packed row; the cached prefixes, of the lengths `given`, lie behind them."""
    starts = [0, *accumulate(given)]
    self_spans = _call(
        [o.queries for o in plan.self_spans], [o.keys for o in plan.self_spans], plan.n_queries, n_keys, device
    )
    prefix_spans = []
    for depth in sorted({c.depth for c in plan.prefix_spans}):
        here = [c for c in plan.prefix_spans if c.depth == depth]
        keys = []
        for c in here:
            shift = 0 if c.keys.given is None else n_keys + starts[c.keys.given]
            keys.append((shift + c.keys.first, shift + c.keys.last))
        prefix_spans.append(_call([c.queries for c in here], keys, plan.n_queries, n_keys + starts[-1], device))
    return VarlenPlan(self_spans, all(o.queries == o.keys for o in plan.self_spans), tuple(prefix_spans))


def attend_varlen(
    out_QHE: Tensor,
    query_QHE: Tensor,
    key_KGE: Tensor,
    value_KGE: Tensor,
    calls: VarlenPlan,
    varlen: Varlen,
    scale: float,
) -> None:
    """Fill `out_QHE`. Keys and values are those of the packed row, then of the cached prefixes."""
    lse_HQ = torch.empty(query_QHE.shape[1], len(query_QHE), dtype=torch.float32, device=query_QHE.device)
    for i, call in enumerate((calls.self_spans, *calls.prefix_spans)):
        out, lse = varlen(
            _rows(query_QHE, call.index_Q),
            _rows(key_KGE, call.index_K),
            _rows(value_KGE, call.index_K),
            call,
            calls.is_causal and i == 0,
            scale,
        )
        at = slice(None) if call.index_Q is None else call.index_Q
        if i == 0:
            out_QHE[at], lse_HQ[:, at] = out, lse
            continue
        share = torch.sigmoid(lse - lse_HQ[:, at])
        out_QHE[at] = torch.lerp(out_QHE[at].float(), out.float(), share.T[..., None]).to(out_QHE.dtype)
        lse_HQ[:, at] = torch.logaddexp(lse, lse_HQ[:, at])


def flash_varlen() -> Varlen:
    """torch's variable-length attention. Its arguments have changed between versions."""
    from torch.nn.attention.varlen import AuxRequest, varlen_attn

    known = inspect.signature(varlen_attn).parameters

    def call_it(
        query: Tensor, key: Tensor, value: Tensor, call: VarlenCall, is_causal: bool, scale: float
    ) -> tuple[Tensor, Tensor]:
        options: dict[str, Any] = {"return_aux": AuxRequest(lse=True), "scale": scale}
        if "window_size" in known:
            options["window_size"] = (-1, 0) if is_causal else (-1, -1)
        else:
            options["is_causal"] = is_causal
        if "enable_gqa" in known:
            options["enable_gqa"] = True
        elif (n_repeat := query.shape[1] // key.shape[1]) > 1:
            key, value = key.repeat_interleave(n_repeat, 1), value.repeat_interleave(n_repeat, 1)
        out, lse = varlen_attn(query, key, value, call.ends_q, call.ends_k, call.longest_q, call.longest_k, **options)
        return out, lse

    return call_it


def _rows(x: Tensor, index: Tensor | None) -> Tensor:
    return x if index is None else x.index_select(0, index)


def _call(
    queries: Sequence[Range], keys: Sequence[Range], n_queries: int, n_keys: int, device: torch.device
) -> VarlenCall:
    return VarlenCall(
        _index(queries, n_queries, device),
        _index(keys, n_keys, device),
        _ends(queries, device),
        _ends(keys, device),
        max(b - a for a, b in queries),
        max(b - a for a, b in keys),
    )


def _index(ranges: Sequence[Range], n: int, device: torch.device) -> Tensor | None:
    flat = [i for a, b in ranges for i in range(a, b)]
    return None if flat == list(range(n)) else to_device(flat, device)


def _ends(ranges: Sequence[Range], device: torch.device) -> Tensor:
    return to_device([0, *accumulate(b - a for a, b in ranges)], device, torch.int32)

"""Attention of a layer for a packed row.

Registered with transformers' attention interface under one name; the `PackedForward` of the row is passed as a keyword of
the model's forward, so there is no global state. Knows plans and tensors, no rows and no requests.
Shapes: N tokens of the packed row, Q queries, H query heads, G key heads, E head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from rewardserve.model.backends.native import Kernels
from rewardserve.model.backends.packed.chains import KernelTables, attend_chains, kernel_tables
from rewardserve.model.backends.packed.kernels import Kernel, dense
from rewardserve.model.backends.packed.layout import AttentionPlan, KeyRange, Layout, SelfSpan
from rewardserve.model.backends.packed.varlen import Varlen, VarlenPlan, attend_varlen, prepare_varlen

NAME = "rewardserve_packed"
KEYWORD = "rewardserve_forward"
"""The keyword argument that carries a `PackedForward` from the model's forward to its attention."""

KeysAndValues = tuple[Tensor, Tensor]
"""Keys and values of one layer, each `(1, G, tokens, E)`, rotated."""

_HARMLESS = frozenset({"position_ids", "cache_position", "use_cache", "output_attentions",
                       "output_hidden_states", "output_router_logits", "return_dict", "is_causal"})  # fmt: skip
_LARGEST_FUSED_HEAD = 256


class UnsupportedArchitecture(Exception):
    """The architecture needs an attention feature that packing does not support."""


class LastKeysReached(Exception):
    """Signal that carries keys and values out of the last layer before the rest of the layer is computed; not an error."""

    def __init__(self, kv: KeysAndValues) -> None:
        super().__init__()
        self.kv = kv


@dataclass(slots=True, eq=False)
class PackedForward:
    """State of one packed row during its forward.

    `scored_S` are the layout's scored indices on the device. With `varlen` attention takes a few calls a layer, with
    `native` one, otherwise one of `kernel` a segment.
    `given[i][layer]` are the keys and values of the i-th cached prefix. The key ranges in `kept` are copied, layer by
    layer, into `copies`. While `last_kv` is None and `stops` is set, the attention raises `LastKeysReached`; once `last_kv`
    is set, the scored tokens alone are the queries.
    """

    layout: Layout
    scored_S: Tensor
    kernel: Kernel
    varlen: Varlen | None = None
    native: Kernels | None = None
    given: Sequence[Sequence[KeysAndValues]] = ()
    kept: Sequence[tuple[KeyRange, ...]] = ()
    copies: list[list[KeysAndValues]] = field(default_factory=list)
    stops: bool = False
    last_kv: KeysAndValues | None = None
    layer: int = 0
    saw_window: bool = False
    calls: dict[int, VarlenPlan] = field(default_factory=dict)
    tables: dict[int, KernelTables] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Queue the copies of all tables to the device before the first layer."""
        for plan in (self.layout.every, self.layout.last):
            if self.varlen is not None:
                given = [layers[0][0].shape[2] for layers in self.given]
                self.calls[id(plan)] = prepare_varlen(plan, len(self.layout.ids), given, self.scored_S.device)
            elif self.native is not None and (tables := kernel_tables(plan)) is not None:
                self.tables[id(plan)] = tables

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int | None, softcap: float | None
    ) -> Tensor:
        """Attention of a layer, `(1, Q, H, E)`. Raise `LastKeysReached` in the last layer where only its keys are needed."""
        if self.stops and self.last_kv is None:
            raise LastKeysReached((key, value))
        plan = self.layout.every
        if self.last_kv is not None:
            (key, value), plan = self.last_kv, self.layout.last
        given = [layers[self.layer] for layers in self.given]
        self._keep(key, value, given)
        self.layer += 1
        if softcap is None and _fits(query, value) and not _beyond(plan, window):
            if self.varlen is not None:
                return self._attend_varlen(query, key, value, given, plan, self.varlen, scale)
            if (
                self.native is not None
                and id(plan) in self.tables
                and query.stride(3) == key.stride(3) == value.stride(3) == 1
            ):
                return attend_chains(self.native, query, key, value, given, self.tables[id(plan)], scale)
        return attend(query, key, value, given, plan, self.kernel, scale=scale, window=window, softcap=softcap)

    def _attend_varlen(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        given: Sequence[KeysAndValues],
        plan: AttentionPlan,
        varlen: Varlen,
        scale: float,
    ) -> Tensor:
        if given:
            key = torch.cat([key, *(k for k, _ in given)], dim=2)
            value = torch.cat([value, *(v for _, v in given)], dim=2)
        query, key, value = (x[0].transpose(0, 1) for x in (query, key, value))
        out_QHE = torch.empty_like(query, memory_format=torch.contiguous_format)
        attend_varlen(out_QHE, query, key, value, self.calls[id(plan)], varlen, scale)
        return out_QHE[None]

    def _keep(self, key: Tensor, value: Tensor, given: Sequence[KeysAndValues]) -> None:
        if not self.copies:
            self.copies = [[] for _ in self.kept]
        for chain, copy in zip(self.kept, self.copies, strict=True):
            # `cat` copies: a view would hold the whole batch.
            copy.append(_gather(chain, key, value, given))


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    given: Sequence[KeysAndValues],
    plan: AttentionPlan,
    kernel: Kernel,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention of a whole plan, `(1, Q, H, E)`, with fused kernels wherever those are exact."""
    fused = softcap is None and _fits(query, value)
    written_out = [o for o in plan.self_spans if not fused] or _beyond(plan, window)
    out_QHE = query.new_empty(query.shape[2], query.shape[1], value.shape[-1])
    if len(written_out) < len(plan.self_spans):
        _fused(out_QHE, query, key, value, given, plan, kernel, scale)
    for self_spans in written_out:
        k, v = _gather(self_spans.chain, key, value, given)
        (a, b), first = self_spans.queries, self_spans.first_position
        out = dense(query[:, :, a:b], k, v, first_position=first, scale=scale, window=window, softcap=softcap)
        out_QHE[a:b] = out[0].transpose(0, 1)
    return out_QHE[None]


def _fused(
    out_QHE: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    given: Sequence[KeysAndValues],
    plan: AttentionPlan,
    kernel: Kernel,
    scale: float,
) -> None:
    """Attend to each segment's keys, then to its prefixes, and merge the two softmaxes by the log of their sums:
    `out = lerp(out_1, out_2, sigmoid(lse_2 - lse_1))`.
    """
    lse_HQ = torch.empty(query.shape[1], query.shape[2], dtype=torch.float32, device=query.device)
    for self_spans in plan.self_spans:
        (a, b), (c, d) = self_spans.queries, self_spans.keys
        out, lse = kernel(query[:, :, a:b], key[:, :, c:d], value[:, :, c:d], b - a == d - c, scale)
        out_QHE[a:b] = out[0].transpose(0, 1)
        if plan.prefix_spans:
            lse_HQ[:, a:b] = lse[0]
    for prefix_spans in plan.prefix_spans:
        (a, b), (k, v) = prefix_spans.queries, _of(prefix_spans.keys, key, value, given)
        out, lse = kernel(query[:, :, a:b], k, v, False, scale)
        share_QH1 = torch.sigmoid(lse[0] - lse_HQ[:, a:b]).transpose(0, 1)[..., None]
        out_QHE[a:b] = torch.lerp(out_QHE[a:b].float(), out[0].transpose(0, 1).float(), share_QH1)
        lse_HQ[:, a:b] = torch.logaddexp(lse[0], lse_HQ[:, a:b])


def _fits(query: Tensor, value: Tensor) -> bool:
    """Whether the fused kernels support heads of this width."""
    return bool(query.shape[-1] == value.shape[-1] <= _LARGEST_FUSED_HEAD)


def _beyond(plan: AttentionPlan, window: int | None) -> list[SelfSpan]:
    """Segments that end beyond the window: some of their tokens do not attend to their whole row."""
    return [self_spans for self_spans in plan.self_spans if window is not None and self_spans.n_keys > window]


def _of(keys: KeyRange, key: Tensor, value: Tensor, given: Sequence[KeysAndValues]) -> KeysAndValues:
    k, v = (key, value) if keys.given is None else given[keys.given]
    return k[:, :, keys.first : keys.last], v[:, :, keys.first : keys.last]


def _gather(chain: Sequence[KeyRange], key: Tensor, value: Tensor, given: Sequence[KeysAndValues]) -> KeysAndValues:
    parts = [_of(keys, key, value, given) for keys in chain]
    return torch.cat([k for k, _ in parts], dim=2), torch.cat([v for _, v in parts], dim=2)


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
    """Attention function that transformers calls in every layer. Raise `UnsupportedArchitecture` for an unknown argument."""
    forward = others.pop(KEYWORD, None)
    if not isinstance(forward, PackedForward):
        raise UnsupportedArchitecture(
            f"{type(module).__name__} does not pass the keywords of its forward to its attention"
        )
    unknown = sorted(name for name, given in others.items() if given is not None and name not in _HARMLESS)
    if unknown or attention_mask is not None or dropout or others.get("is_causal") is False:
        raise UnsupportedArchitecture(
            f"{type(module).__name__} needs {', '.join(unknown) or 'a mask, dropout or attention that is not causal'}"
        )
    forward.saw_window |= bool(sliding_window)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return forward.attend(query, key, value, scale, sliding_window or None, softcap), None


# No mask function is registered under this name, so transformers makes no mask.
AttentionInterface.register(NAME, packed_attention)

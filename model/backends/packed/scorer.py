"""Score a batch as one packed row: no padding, common prefixes once, the last layer only for the scored tokens.

Knows the network and ids, no requests. Shapes: N tokens of the packed row, S scored tokens, D hidden width, C columns of a score.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from rewardserve.model.backends import MatmulPrecision
from rewardserve.model.backends.length_classes import LengthClasses
from rewardserve.model.backends.output_columns import OutputColumns
from rewardserve.model.backends.packed.attention import (
    KEYWORD,
    NAME,
    KeysAndValues,
    PackedForward,
    UnsupportedArchitecture,
)
from rewardserve.model.backends.packed.kernels import kernel_for
from rewardserve.model.backends.packed.last_layer import LastLayer, last_layer
from rewardserve.model.backends.packed.layout import KeyRange, PrefixedTree, lay_out
from rewardserve.model.backends.packed.prefix_cache import MIN_PREFIX_TOKENS, CachedPrefix, PrefixCache
from rewardserve.model.backends.packed.transfer import to_device
from rewardserve.model.backends.packed.tree import PrefixTree, Row, build_prefix_tree, without_sharing
from rewardserve.model.backends.packed.varlen import Varlen, flash_varlen
from rewardserve.model.backends.packed.weights import PackedWeights
from rewardserve.model.backends.scorer_errors import as_scorer_errors
from rewardserve.model.common_prefix import ID_BYTES, common_prefix_length, row_key
from rewardserve.model.hidden_reference import HiddenReference
from rewardserve.model.network import RewardNetwork
from rewardserve.model.scorer import BatchScores, TokenBatch


class PackedScorer:
    """Scorer with one packed forward a batch. Raise `UnsupportedArchitecture` where the architecture cannot be packed.

    `share`: common prefixes and equal rows are computed once. `trim`: the last layer computes only the scored tokens.
    `hidden`: reference for the column `DISTANCE`.
    `one_by_one`: every row has a separate forward, so its score has the same bits in every batch.
    `prepack`: linear layers use weights in the order of the matrix kernel, where one is available: on AMX ("high") or AVX-512
    those in C, which also compute attention, gated MLPs and norms, else MKL's.
    """

    pads_rows = False
    streams = False
    is_alive = True

    def __init__(
        self,
        network: RewardNetwork,
        *,
        max_tokens: int,
        hidden: HiddenReference | None = None,
        share: bool = True,
        trim: bool = True,
        one_by_one: bool = False,
        prepack: bool = True,
        matmul_precision: MatmulPrecision = "highest",
        prefix_cache_bytes: int = 0,
    ) -> None:
        self._network, self._max_tokens = network, max_tokens
        self._columns = OutputColumns(network.head_names, hidden)
        self._shares = share and not one_by_one
        self._one_by_one = one_by_one
        self._network_lock, self._prefix_cache_lock = threading.Lock(), threading.Lock()
        self.prefix_cache = PrefixCache(prefix_cache_bytes if self._shares else 0)
        self._kernel, self._varlen = kernel_for(network.device), varlen_for(network)
        self._length_classes = LengthClasses.of_config(network.config)
        self._windowed = is_windowed(network.config)
        self._last = LastLayer(last_layer(network.backbone)) if trim else None
        self._with = network.config._attn_implementation
        try:
            network.backbone.set_attn_implementation(NAME)
            if network.config._attn_implementation != NAME:
                raise UnsupportedArchitecture("its attention is not called through transformers' attention interface")
        except Exception:
            network.backbone.set_attn_implementation(self._with)
            raise
        if self._last:
            self._last.install()
        self._weights = PackedWeights(network.backbone, matmul_precision) if prepack else None
        if self._weights:
            self._weights.install()

    @property
    def name(self) -> str:
        """Name of the engine."""
        return "packed"

    def clear_cache(self) -> None:
        """Free the cached prefixes of earlier batches."""
        with self._prefix_cache_lock:
            self.prefix_cache.clear()

    @property
    def max_tokens(self) -> int:
        """The longest row."""
        return self._max_tokens

    @property
    def shares_prefixes(self) -> bool:
        """Whether common prefixes are computed once."""
        return self._shares

    @property
    def matmul_precision(self) -> MatmulPrecision:
        """Precision of matrix products in use; it has a meaning for float32 on a CPU only."""
        return self._weights.precision if self._weights else "highest"

    @property
    def matmul_kernels(self) -> str:
        """Library or instruction set of the matrix products."""
        return self._weights.kernels_name if self._weights else "torch"

    @property
    def kernels_note(self) -> str | None:
        """Reason why faster kernels are not used, where the operator can change that."""
        return self._weights.note if self._weights else None

    @property
    def concurrency(self) -> int:
        """2 on CUDA, where a second batch is prepared and queued while one runs; 1 on a CPU, which does all the work."""
        return 2 if self._network.device.type == "cuda" else 1

    def score(self, batch: TokenBatch) -> BatchScores:
        """Score every row, in order. Raise `OutOfMemory` or `ScorerError`."""
        scores: list[Any] = [None] * len(batch)
        n_computed = 0
        names = self._columns.names
        with torch.inference_mode(), as_scorer_errors(batch.n_tokens):
            for length_class, indices in self._forwards(batch.rows):
                columns, n = self._score_together([batch.rows[i] for i in indices], length_class)
                n_computed += n
                for i, row in zip(indices, columns, strict=True):
                    scores[i] = dict(zip(names, row, strict=True))
        return BatchScores(tuple(scores), tokens_computed=n_computed)

    def close(self) -> None:
        """Free the weights and the cached prefixes."""
        self.uninstall()
        self.prefix_cache.clear()
        del self._network

    def uninstall(self) -> None:
        """Restore the network. Not after `release_unpacked_weights`."""
        if self._weights:
            self._weights.remove()
        if self._last:
            self._last.remove()
        self._network.backbone.set_attn_implementation(self._with)

    def withhold_weights(self, withheld: bool) -> None:
        """Take the weights that `release_unpacked_weights` frees out of the network, or put them back."""
        if self._weights:
            self._weights.withhold() if withheld else self._weights.restore()

    def release_unpacked_weights(self) -> None:
        """Free the weights that only another engine would need, once this engine is chosen."""
        if self._weights:
            self._weights.release()

    # -- one forward ----------------------------------------------------------------------------------------

    def _forwards(self, rows: Sequence[Row]) -> Iterator[tuple[int, list[int]]]:
        """Yield each length class with the indices of its rows, which share a forward."""
        length_classes: dict[int, list[int]] = {}
        for i, row in enumerate(rows):
            length_classes.setdefault(self._length_classes.of(len(row)), []).append(i)
        for length_class, indices in length_classes.items():
            yield from ((length_class, [i]) for i in indices) if self._one_by_one else ((length_class, indices),)

    def _score_together(
        self, rows: Sequence[Row], length_class: int, *, fresh: bool = False
    ) -> tuple[list[list[float]], int]:
        """Return the columns of each row, and the number of computed tokens. `fresh`: the prefix cache is not used.

        A row whose score is not finite is computed again, alone: a prefix that it shares with others may be the cause.
        """
        forward, prepared = self._prepare(rows, length_class, fresh=fresh)
        with self._network_lock:
            columns_SC = self._forward(forward, prepared)
        of_scored = columns_SC.cpu().tolist()  # on CUDA this waits, while the next batch is already being queued
        columns, n_computed = [of_scored[at] for at in prepared.at], len(forward.layout.ids)
        failed = [i for i, row in enumerate(columns) if not all(map(math.isfinite, row))]
        self._keep(forward, prepared, length_class, [row_key(rows[i]) for i in failed])
        if not fresh and (len(rows) > 1 or forward.given):
            for i in failed:
                (columns[i],), n = self._score_together([rows[i]], length_class, fresh=True)
                n_computed += n
                if all(map(math.isfinite, columns[i])):
                    self._drop_beginning_of(i, prepared, length_class)
        return columns, n_computed

    def _prepare(self, rows: Sequence[Row], length_class: int, *, fresh: bool) -> tuple[PackedForward, PackedInput]:
        """Prepare the inputs of a forward; this may run while another batch is in the network."""
        keeps = self.prefix_cache.max_bytes and length_class >= 0 and not fresh
        keys = [row_key(row) for row in rows] if keeps else []
        with self._prefix_cache_lock:
            groups = self._grouped(keys, length_class) or [(None, list(range(len(rows))))]
            parts, given = _parts(rows, groups, build_prefix_tree if self._shares else without_sharing)
            layout = lay_out(parts)
            order = [i for _, indices in groups for i in indices]
            at_of = dict(zip(order, layout.rows, strict=True))
            kept = self._to_keep(keys, length_class, {i: layout.last.self_spans[at].chain for i, at in at_of.items()})
        device = self._network.device
        scored_S = to_device(layout.scored, device)
        native = self._weights.kernels if self._weights else None
        forward = PackedForward(
            layout, scored_S, self._kernel, self._varlen, native, given, [chain for _, chain in kept]
        )
        ids_1N, positions_1N = to_device(layout.ids, device)[None], to_device(layout.positions, device)[None]
        return forward, PackedInput(ids_1N, positions_1N, [at_of[i] for i in range(len(rows))], kept, groups)

    def _forward(self, forward: PackedForward, prepared: PackedInput) -> Tensor:
        """Run the network: `(S, C)` in float32, on the device."""
        out = self._network.backbone(
            input_ids=prepared.ids_1N, position_ids=prepared.positions_1N, use_cache=False, **{KEYWORD: forward}
        )
        if self._windowed and not forward.saw_window:
            raise UnsupportedArchitecture("its layers do not pass the size of their sliding window to the attention")
        hidden_1SD = out.last_hidden_state
        if self._last is None:
            hidden_1SD = hidden_1SD.index_select(1, forward.scored_S.to(hidden_1SD.device))
        elif forward.last_kv is None:
            raise UnsupportedArchitecture("its last layer did not run")
        hidden_SD = hidden_1SD[0].to(self._network.device)
        return self._columns.of(self._network.values_of(hidden_SD), hidden_SD)

    # -- prefix cache ---------------------------------------------------------------------------------------

    def _keep(self, forward: PackedForward, prepared: PackedInput, length_class: int, failed: Sequence[bytes]) -> None:
        """Cache the prefixes to be kept, if they are finite and no `failed` row begins with them."""
        for (key, _), layers in zip(prepared.kept, forward.copies, strict=True):
            if not any(each.startswith(key) for each in failed) and _is_finite(layers):
                with self._prefix_cache_lock:
                    self.prefix_cache.keep(key, layers, length_class)

    def _drop_beginning_of(self, i: int, prepared: PackedInput, length_class: int) -> None:
        """Evict the cached prefix of the i-th row, whose score is finite without it."""
        for found, indices in prepared.groups:
            if found and i in indices:
                with self._prefix_cache_lock:
                    self.prefix_cache.drop(found[0].key, length_class)

    def _grouped(self, keys: Sequence[bytes], length_class: int) -> list[tuple[Found, list[int]]]:
        """Indices of rows, grouped by their cached prefix."""
        groups: dict[tuple[bytes, int], tuple[Found, list[int]]] = {}
        for i, key in enumerate(keys):
            found = self.prefix_cache.find(key, length_class)
            name = (found[0].key, found[1]) if found else (b"", 0)
            groups.setdefault(name, (found, []))[1].append(i)
        return list(groups.values())

    def _to_keep(
        self, keys: Sequence[bytes], length_class: int, chain_of: dict[int, tuple[KeyRange, ...]]
    ) -> list[tuple[bytes, tuple[KeyRange, ...]]]:
        """Prefixes that were seen for the second time, and the ranges of their keys. Those that differ only at their ends
        are replaced by their common prefix.
        """
        again: list[tuple[bytes, int]] = []
        for i, key in enumerate(keys):
            n = self.prefix_cache.observe(key, length_class)
            n_given = sum(k.last - k.first for k in chain_of[i] if k.given is not None)
            if n >= n_given + MIN_PREFIX_TOKENS:
                again.append((key[: n * ID_BYTES], i))
        kept: list[tuple[bytes, int]] = []
        for key, i in sorted(again):
            n = common_prefix_length(kept[-1][0], key) if kept else 0
            if kept and n >= MIN_PREFIX_TOKENS and 2 * n * ID_BYTES >= len(key):
                kept[-1] = (key[: n * ID_BYTES], i)
            else:
                kept.append((key, i))
        return [(key, _cut(chain_of[i], len(key) // ID_BYTES)) for key, i in kept]


Found = tuple[CachedPrefix, int] | None


@dataclass(frozen=True, slots=True, eq=False)
class PackedInput:
    """Inputs of the network, the index of each row's score, the prefixes to cache, and the rows grouped by cached prefix."""

    ids_1N: Tensor
    positions_1N: Tensor
    at: list[int]
    kept: list[tuple[bytes, tuple[KeyRange, ...]]]
    groups: Sequence[tuple[Found, list[int]]]


def _is_finite(layers: Sequence[KeysAndValues]) -> bool:
    """Whether every number is finite. The host waits once for each device that has layers."""
    found: dict[torch.device, list[Tensor]] = {}
    for layer in layers:
        for x in layer:
            found.setdefault(x.device, []).append(x.isfinite().all())
    return all(all(torch.stack(each).cpu().tolist()) for each in found.values())


def _parts(
    rows: Sequence[Row], groups: Sequence[tuple[Found, list[int]]], tree_of: Callable[[Sequence[Row]], PrefixTree]
) -> tuple[list[PrefixedTree], list[Sequence[KeysAndValues]]]:
    """Build a tree for each group, of its rows without their cached prefix."""
    parts: list[PrefixedTree] = []
    given: list[Sequence[KeysAndValues]] = []
    for found, indices in groups:
        n = found[1] if found else 0
        tree = tree_of([rows[i][n:] for i in indices])
        parts.append(PrefixedTree(tree, len(given) if found else None, n))
        if found:
            given.append(found[0].layers)
    return parts, given


def _cut(chain: Sequence[KeyRange], n: int) -> tuple[KeyRange, ...]:
    """The first n keys of a chain."""
    out = []
    for keys in chain:
        out.append(replace(keys, last=min(keys.last, keys.first + n)))
        n -= out[-1].last - out[-1].first
        if not n:
            break
    return tuple(out)


def varlen_for(network: RewardNetwork) -> Varlen | None:
    """On a CUDA device in half precision, flash attention over many segments at once; else None."""
    half = next(network.backbone.parameters()).dtype in (torch.bfloat16, torch.float16)
    return flash_varlen() if half and network.device.type == "cuda" else None


def is_windowed(config: Any) -> bool:
    """Whether some layers have a sliding window. Raise `UnsupportedArchitecture` for layers of yet another kind."""
    config = config.get_text_config()
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or (["sliding_attention"] if window else []))
    if unknown := kinds - {"full_attention", "sliding_attention"}:
        raise UnsupportedArchitecture(f"it has layers of {', '.join(sorted(unknown))}")
    return bool(window) and "sliding_attention" in kinds

"""Run a network over many sequences: values of its heads, or the hidden states they read.

Rows with a common prefix are packed together, which is computed once; where the network cannot be packed, rows of similar length
are padded together. Results are in the order of the input. Shapes: N sequences, B rows of one batch, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from rewardserve.model.backends.length_classes import LengthClasses
from rewardserve.model.common_prefix import row_key
from rewardserve.model.network import NetworkOutput, RewardNetwork
from rewardserve.model.padding import left_pad
from rewardserve.training.batches.packed_attention import packing_objection, packs
from rewardserve.training.batches.packed_rows import pack
from rewardserve.training.console import progress


def score(
    network: RewardNetwork, rows: Sequence[Sequence[int]], *, pad_id: int, batch_tokens: int, label: str = "sequences"
) -> np.ndarray:
    """Raw value of every head for every row, `(N, H)` float64."""
    return read(network, rows, pad_id=pad_id, batch_tokens=batch_tokens, label=label)[0]


def last_hidden(network: RewardNetwork, rows: Sequence[Sequence[int]], *, pad_id: int, batch_tokens: int) -> Tensor:
    """Hidden state that the heads read, for every row, `(N, D)` float32 on the CPU."""
    return read(network, rows, pad_id=pad_id, batch_tokens=batch_tokens, label="features of the frozen backbone")[1]


def read(
    network: RewardNetwork, rows: Sequence[Sequence[int]], *, pad_id: int, batch_tokens: int, label: str
) -> tuple[np.ndarray, Tensor]:
    """Results of `score` and `last_hidden`, from the same forwards."""
    scores_NH = np.zeros((len(rows), len(network.head_names)))
    hidden_ND = torch.zeros(len(rows), network.heads.in_features)
    for places, out in _forwards(network, rows, pad_id, batch_tokens, label):
        # During training there may be length heads behind the others.
        scores_NH[places] = out.scores_BH[:, : len(network.head_names)].double().cpu().numpy()
        hidden_ND[places] = out.last_hidden_BD.float().cpu()
    return scores_NH, hidden_ND


def plan(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Group rows of similar length into forwards of at most `batch_tokens` with the padding, at least one row each."""
    batches: list[list[int]] = []
    for i in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        # Sorted by falling length, the first row of a batch is its width.
        if batches and lengths[batches[-1][0]] * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def plan_packed(rows: Sequence[Sequence[int]], batch_tokens: int) -> list[list[int]]:
    """Group rows with common prefixes into forwards of at most `batch_tokens`, at least one row each."""
    keys = [row_key(row) for row in rows]
    batches: list[list[int]] = []
    n_tokens = 0
    for i in sorted(range(len(rows)), key=keys.__getitem__):
        if batches and n_tokens + len(rows[i]) <= batch_tokens:
            batches[-1].append(i)
            n_tokens += len(rows[i])
        else:
            batches.append([i])
            n_tokens = len(rows[i])
    return batches


def _forwards(
    network: RewardNetwork, rows: Sequence[Sequence[int]], pad_id: int, batch_tokens: int, label: str
) -> Iterator[tuple[list[int], NetworkOutput]]:
    was_training = network.training
    network.eval()
    is_packed = len(rows) > 1 and _can_pack(network, pad_id)
    batches = plan_packed(rows, batch_tokens) if is_packed else plan([len(r) for r in rows], batch_tokens)
    forward = _packed_forward if is_packed else partial(_padded_forward, pad_id)
    try:
        with torch.no_grad():
            for places in progress(batches, f"scoring {label}", len(rows), size=len, unit=" sequences"):
                yield places, forward(network, [tuple(rows[i]) for i in places])
    finally:
        network.train(was_training)


def _can_pack(network: RewardNetwork, pad_id: int) -> bool:
    """Whether packed rows have the scores of padded ones, and the rotary angles of a row do not depend on its neighbours."""
    is_fixed = LengthClasses.of_config(network.config) == LengthClasses()
    return is_fixed and packing_objection(network, pad_id=pad_id, gradients=False) is None


def _packed_forward(network: RewardNetwork, rows: Sequence[tuple[int, ...]]) -> NetworkOutput:
    ids_1N, packed = pack(rows, shares_prefixes=True)
    with packs(network):
        out: NetworkOutput = network(ids_1N.to(network.device), None, packed.to(network.device))
    return out


def _padded_forward(pad_id: int, network: RewardNetwork, rows: Sequence[tuple[int, ...]]) -> NetworkOutput:
    ids_BT, mask_BT = left_pad(rows, pad_id)
    out: NetworkOutput = network(ids_BT.to(network.device), mask_BT.to(network.device))
    return out

"""Run a network over many sequences: values of its heads, or the hidden states they read.

Rows are sorted by length and batched by a budget of tokens; results are in the order of the input. Shapes: N sequences,
B rows of one batch, D width, H heads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from rewardserve.model.network import NetworkOutput, RewardNetwork
from rewardserve.model.padding import left_pad
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


def _forwards(
    network: RewardNetwork, rows: Sequence[Sequence[int]], pad_id: int, batch_tokens: int, label: str
) -> Iterator[tuple[list[int], NetworkOutput]]:
    was_training = network.training
    network.eval()
    batches = plan([len(r) for r in rows], batch_tokens)
    try:
        with torch.no_grad():
            for places in progress(batches, f"scoring {label}", len(rows), size=len, unit=" sequences"):
                ids_BT, mask_BT = left_pad([rows[i] for i in places], pad_id)
                yield places, network(ids_BT.to(network.device), mask_BT.to(network.device))
    finally:
        network.train(was_training)

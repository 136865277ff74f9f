"""Pair losses: one float32 value a pair. Only the training step reduces them.

Functions of scores and margins; independent of heads, batches and networks. Every loss is finite for every finite
input, in every dtype: `exp` is never taken of a large value. Shapes: P pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from rewardserve.model.text.nearest_word import did_you_mean
from rewardserve.training.config import ConfigError, LossConfig

PairLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


def logsigmoid(chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor) -> Tensor:
    """`-logsigmoid(chosen - rejected - margin)`: Bradley-Terry, with the margin of Llama 2 (2307.09288, eq. 2)."""
    return -F.logsigmoid(_float(chosen_P) - _float(rejected_P) - _float(margin_P))


def logexp(chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor) -> Tensor:
    """`log(1 + exp(rejected - chosen))`: the same loss without a margin (OpenRLHF's LogExp), as a softplus."""
    return F.softplus(_float(rejected_P) - _float(chosen_P))


LOSSES: dict[str, PairLoss] = {"logsigmoid": logsigmoid, "logexp": logexp}
USES_MARGIN = ("logsigmoid",)


def smoothed(loss: PairLoss, share: float, chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor) -> Tensor:
    """Label smoothing of cDPO: with probability `share` the label was reversed.

    The margin belongs to the label, so a reversed label has none.
    """
    swapped_P = loss(rejected_P, chosen_P, margin_P * 0)
    return (1 - share) * loss(chosen_P, rejected_P, margin_P) + share * swapped_P


def centring(chosen_P: Tensor, rejected_P: Tensor) -> Tensor:
    """`(chosen + rejected)^2`: Bradley-Terry fixes differences only, this pins the level (Eisenstein 2312.09244)."""
    return (_float(chosen_P) + _float(rejected_P)) ** 2


def pair_loss(config: LossConfig) -> PairLoss:
    """Loss of the recipe, with its smoothing and centring. Raise `ConfigError` for an unknown name."""
    if config.name not in LOSSES:
        raise ConfigError(
            f"loss.name is {config.name!r}; it must be one of {', '.join(LOSSES)}{did_you_mean(config.name, LOSSES)}"
        )
    loss = LOSSES[config.name]
    if config.label_smoothing:
        loss = partial(smoothed, loss, config.label_smoothing)
    return partial(_centred, loss, config.centring) if config.centring else loss


def _centred(loss: PairLoss, coefficient: float, chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor) -> Tensor:
    return loss(chosen_P, rejected_P, margin_P) + coefficient * centring(chosen_P, rejected_P)


def _float(x: Tensor) -> Tensor:
    """Convert to float32, or keep float64 (tests): half precision cannot hold a difference of large scores."""
    return x if x.dtype == torch.float64 else x.float()

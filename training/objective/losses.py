"""Losses of feedback: one float32 value an item. Only the training step reduces them.

Functions of scores and labels; independent of heads, batches and networks. Every loss is finite for every finite
input, in every dtype: `exp` is never taken of a large value. Shapes: P items, K responses of a ranking.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from math import inf, log

import torch
import torch.nn.functional as F
from torch import Tensor

from rewardserve.model.text.nearest_word import did_you_mean
from rewardserve.training.settings.loss_config import LossConfig
from rewardserve.training.settings.validation import ConfigError

PairLoss = Callable[[Tensor, Tensor, Tensor], Tensor]


def logsigmoid(chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor) -> Tensor:
    """`-logsigmoid(chosen - rejected - margin)`: Bradley-Terry, with the margin of Llama 2 (2307.09288, eq. 2)."""
    return -F.logsigmoid(_float(chosen_P) - _float(rejected_P) - _float(margin_P))


def logexp(chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor) -> Tensor:
    """`log(1 + exp(rejected - chosen))`: the same loss without a margin (OpenRLHF's LogExp), as a softplus."""
    return F.softplus(_float(rejected_P) - _float(chosen_P))


LOSSES: dict[str, PairLoss] = {"logsigmoid": logsigmoid, "logexp": logexp}
USES_MARGIN = ("logsigmoid",)


def davidson(chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor, tie_P: Tensor, nu: float) -> Tensor:
    """Win or tie in Davidson's extension of Bradley-Terry (1970, J. Am. Stat. Assoc. 65, 317-328).

    With d = chosen - rejected - margin, a win has the probability `e^(d/2) / Z` and a tie `nu / Z`, where
    `Z = e^(d/2) + e^(-d/2) + nu`. Without ties (nu = 0) a win is that of `logsigmoid`.
    """
    half_P = (_float(chosen_P) - _float(rejected_P) - _float(margin_P)) / 2
    nu_P = torch.full_like(half_P, log(nu))
    return torch.stack([half_P, -half_P, nu_P]).logsumexp(0) - torch.where(tie_P, nu_P, half_P)


def plackett_luce(scores_PK: Tensor, values_PK: Tensor) -> Tensor:
    """A ranking by Plackett-Luce: at each stage the best of the responses that are left; a value of -inf is no response.

    Responses of one value are each taken from the same set, themselves included (Breslow 1974, Biometrics 30, 89-99, for
    the partial likelihood of Cox, which is this one without censoring); so equal scores are best for them.
    """
    scores_PK = _float(scores_PK)
    is_there_PK = values_PK > -inf
    # Of a place without a response only the diagonal is left: no row of the matrix is empty.
    left_PKK = (values_PK[:, None, :] <= values_PK[:, :, None]) & is_there_PK[:, None, :]
    left_PKK = left_PKK | torch.eye(scores_PK.shape[1], dtype=torch.bool, device=scores_PK.device)
    total_PK = scores_PK[:, None, :].masked_fill(~left_PKK, -inf).logsumexp(-1)
    return (total_PK - scores_PK).masked_fill(~is_there_PK, 0).sum(-1)


def squared(score_P: Tensor, rating_P: Tensor) -> Tensor:
    """`(score - rating)^2`."""
    return (_float(score_P) - _float(rating_P)) ** 2


def huber(score_P: Tensor, rating_P: Tensor) -> Tensor:
    """Half the square up to a difference of 1, beyond it linear (Huber 1964, Ann. Math. Stat. 35)."""
    return F.huber_loss(_float(score_P), _float(rating_P), reduction="none")


RATING_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": squared, "huber": huber}


def good_or_bad(score_P: Tensor, good_P: Tensor, flip_P: Tensor, offset: float) -> Tensor:
    """Binary cross-entropy of `sigmoid(score - offset)` against the probability that the response is good."""
    target_P = good_P + flip_P - 2 * good_P * flip_P
    return F.binary_cross_entropy_with_logits(_float(score_P) - offset, _float(target_P), reduction="none")


def smoothed(loss: PairLoss, share: float | Tensor, chosen_P: Tensor, rejected_P: Tensor, margin_P: Tensor) -> Tensor:
    """Label smoothing of cDPO: with probability `share`, of all pairs or of each, the label was reversed.

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

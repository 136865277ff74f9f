"""The loss of a batch that has feedback of one or several kinds: one value an item, by the loss of its kind.

`fitted` takes the numbers that a recipe leaves open from the training items. Shapes: P items, B rows, H heads, K responses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from math import log

import torch
from torch import Tensor

from rewardserve.training.batches.pair_batches import Batch
from rewardserve.training.dataset.counterexamples import SOURCE
from rewardserve.training.dataset.feedback import Item, Kind
from rewardserve.training.objective.losses import (
    RATING_LOSSES,
    centring,
    davidson,
    good_or_bad,
    pair_loss,
    plackett_luce,
    smoothed,
)
from rewardserve.training.settings.loss_config import LossConfig

LossOfKind = Callable[["FeedbackLoss", Tensor, Batch], Tensor]
_LEAST_SHARE = 1e-3
"""Shares of ties and of good labels are at least this far from 0 and 1."""


def fitted(config: LossConfig, items: Sequence[Item]) -> LossConfig:
    """The settings with `tie` and `label_offset` as numbers.

    The share of ties s gives `2 s / (1 - s)`, the nu at which Davidson's model of two equal responses ties that often. Ties and
    bad labels of a queue of counterexamples do not count: their share is that of its selection. The share of
    good labels p gives `-log(p / (1 - p))`, so a score of 0 is that of a response that is good as often as all are.
    """
    ties = [item.values[0] == item.values[1] for item in items if item.kind == "pairs" and item.source != SOURCE]
    good = [item.values[0] for item in items if item.kind == "labels" and item.source != SOURCE]
    s, p = _share(ties), _share(good)
    tie = 2 * s / (1 - s) if config.tie is None else config.tie
    return replace(
        config, tie=tie, label_offset=-log(p / (1 - p)) if config.label_offset is None else config.label_offset
    )


def _share(found: Sequence[float]) -> float:
    mean = sum(found) / len(found) if found else 0.5
    return min(max(mean, _LEAST_SHARE), 1 - _LEAST_SHARE)


class FeedbackLoss:
    """Scores of a batch -> one loss an item. `config` is `fitted`."""

    def __init__(self, config: LossConfig, kinds: Sequence[Kind]) -> None:
        self.config, self._kinds = config, tuple(kinds)
        self._pair_loss = pair_loss(config)
        self._certain_loss = pair_loss(replace(config, label_smoothing=0.0, centring=0.0))

    def __call__(self, scores_BH: Tensor, batch: Batch) -> Tensor:
        """Losses (P,) in the order of the items."""
        if self._kinds == ("pairs",):
            return self._of_pairs(scores_BH, batch)
        parts = [_OF_KIND[kind](self, scores_BH, _only(batch, batch[kind])) for kind in self._kinds]
        places_P = torch.cat([batch[kind] for kind in self._kinds])
        return torch.cat(parts)[places_P.argsort()]

    def _of_pairs(self, scores_BH: Tensor, batch: Batch) -> Tensor:
        chosen_P = scores_BH[batch["chosen"], batch["head"]]
        rejected_P = scores_BH[batch["rejected"], batch["head"]]
        if "tie" not in batch and "flip" not in batch:
            return self._pair_loss(chosen_P, rejected_P, batch["margin"])
        loss = self._certain_loss
        if "tie" in batch:
            loss = partial(davidson, tie_P=batch["tie"], nu=self.config.tie or 1.0)
        loss_P = smoothed(loss, self._flip(batch), chosen_P, rejected_P, batch["margin"])
        return loss_P + self.config.centring * centring(chosen_P, rejected_P) if self.config.centring else loss_P

    def _of_rankings(self, scores_BH: Tensor, batch: Batch) -> Tensor:
        return plackett_luce(scores_BH[batch["rows"], batch["head"][:, None]], batch["values"])

    def _of_ratings(self, scores_BH: Tensor, batch: Batch) -> Tensor:
        score_P = scores_BH[batch["chosen"], batch["head"]]
        return RATING_LOSSES[self.config.ratings](score_P, batch["values"][:, 0])

    def _of_labels(self, scores_BH: Tensor, batch: Batch) -> Tensor:
        score_P = scores_BH[batch["chosen"], batch["head"]]
        return good_or_bad(score_P, batch["values"][:, 0], self._flip(batch), self.config.label_offset or 0.0)

    def _flip(self, batch: Batch) -> Tensor:
        """Probability that a label is wrong: that of the recipe, or that of its row."""
        share, flip_P = self.config.label_smoothing, batch.get("flip", torch.zeros_like(batch["margin"]))
        return share + flip_P - 2 * share * flip_P


_OF_KIND: dict[Kind, LossOfKind] = {
    "pairs": FeedbackLoss._of_pairs,
    "rankings": FeedbackLoss._of_rankings,
    "ratings": FeedbackLoss._of_ratings,
    "labels": FeedbackLoss._of_labels,
}
_OF_ITEMS = ("chosen", "rejected", "head", "margin", "flip", "tie", "rows", "values")


def _only(batch: Batch, places: Tensor) -> Batch:
    """The items at these places of a batch."""
    return {name: batch[name][places] for name in _OF_ITEMS if name in batch}

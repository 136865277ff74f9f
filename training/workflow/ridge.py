"""Choose the ridge of the convex start of a head by cross-validation within the training groups.

The features of the frozen backbone are there already, so a fit takes a second. Shapes: N sequences, D width, P pairs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rewardserve.training.dataset import leakage
from rewardserve.training.dataset.comparisons import comparisons
from rewardserve.training.dataset.sequences import FeedbackTable, subset
from rewardserve.training.evaluation import folds
from rewardserve.training.loop.methods import fit_logistic

GRID = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)
"""Ridges that are tried."""
FALLBACK = 0.1
"""Ridge of a head whose pairs are of one group, so that none can be held out."""
N_FOLDS = 5


@dataclass(frozen=True, slots=True)
class RidgeChoice:
    """The ridge of a head, and the mean loss of held-out pairs by ridge; empty: its pairs are of one group."""

    head: str
    l2: float
    loss_of: Mapping[float, float]
    n_groups: int

    def __str__(self) -> str:
        """One line for the console and the report."""
        if not self.loss_of:
            return f"ridge of head {self.head!r}: {self.l2:g}, as its pairs are of one group and none can be held out"
        tried = ", ".join(f"{l2:g}: {loss:.3f}" for l2, loss in self.loss_of.items())
        return f"ridge of head {self.head!r}: {self.l2:g}, of the lowest loss on held-out pairs of {self.n_groups} groups ({tried})"


def choose_ridge(hidden_ND: Tensor, table: FeedbackTable, head: str, salt: str) -> RidgeChoice:
    """The ridge of `GRID` with the lowest loss over the pairs of a head, each judged by a fit without its group.

    No fit has a pair with a response that it is judged on, and made pairs judge nothing.
    """
    whole = comparisons(table)
    whole = subset(whole, [item.head == head for item in whole.items], renumber=False)
    n_groups = len({item.group for item in whole.items if not item.made})
    if n_groups < 2:
        return RidgeChoice(head, FALLBACK, {}, n_groups)
    fold_P = folds.assign_folds(whole.items, min(N_FOLDS, n_groups), salt)
    sums, total = dict.fromkeys(GRID, 0.0), 0.0
    for fold in sorted(set(fold_P)):
        held_in, held_out = folds.split_fold(whole, fold_P, fold)
        held_in, _ = leakage.remove_overlap(held_in, held_out, renumber=False)
        if not len(held_in) or not len(held_out):
            continue
        diff_PD = (hidden_ND[list(held_out.chosen)] - hidden_ND[list(held_out.rejected)]).double()
        weight_P = torch.tensor([item.weight for item in held_out.items], dtype=torch.float64)
        total += float(weight_P.sum())
        for l2 in GRID:
            w_D = fit_logistic(hidden_ND, held_in, head, l2=l2).double()
            sums[l2] += float((weight_P * F.softplus(-(diff_PD @ w_D))).sum())
    if not total:
        return RidgeChoice(head, FALLBACK, {}, n_groups)
    loss_of = {l2: each / total for l2, each in sums.items()}
    return RidgeChoice(head, min(loss_of, key=lambda l2: loss_of[l2]), loss_of, n_groups)

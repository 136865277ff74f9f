"""Scores of an ensemble in one checkpoint: of the head that its members have in common, and how far the members differ.

Pure functions of arrays. Shapes: N responses, H outputs of the network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from rewardserve.model.reward.checkpoint_members import head_of_members
from rewardserve.training.dataset.sequences import FeedbackTable
from rewardserve.training.evaluation.evaluate import Floats, wins


@dataclass(frozen=True, slots=True)
class ScoredHeads:
    """Scores of each head, with the weights that make them one: of members, the weighted sum under the name of their head."""

    names: tuple[str, ...]
    weights: tuple[float, ...]
    scores_NH: Floats


def of_heads(names: Sequence[str], weights: Sequence[float], scores_NH: Floats) -> ScoredHeads:
    """Scores of heads from those of the outputs."""
    head = head_of_members(names)
    if head is None:
        return ScoredHeads(tuple(names), tuple(weights), scores_NH)
    return ScoredHeads((head,), (1.0,), (scores_NH @ np.asarray(weights))[:, None])


def about_members(table: FeedbackTable, names: Sequence[str], scores_NH: Floats) -> str:
    """Accuracy of each member, and how often two of them rank a pair differently; empty without members or pairs."""
    if head_of_members(names) is None or not len(table):
        return ""
    diff_PM = scores_NH[list(table.chosen)] - scores_NH[list(table.rejected)]
    accuracy = ", ".join(f"{wins(diff_P).mean():.3f}" for diff_P in diff_PM.T)
    differs = [np.mean(np.sign(diff_PM[:, a]) != np.sign(diff_PM[:, b])) for a, b in combinations(range(len(names)), 2)]
    return (
        f"accuracy of each alone {accuracy}; two of them rank {np.mean(differs):.3f} of the held-out pairs differently"
    )

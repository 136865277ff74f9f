"""Assign items of feedback to folds, and make the scores of different folds comparable.

Pure functions of tables and arrays; independent of networks and files. Shapes: P pairs, N sequences, H heads, F folds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import compress

import numpy as np

from rewardserve.training.dataset.feedback import Item
from rewardserve.training.dataset.sequences import FeedbackTable, TokenSequence, subset
from rewardserve.training.evaluation.calibrate import NothingToFit
from rewardserve.training.evaluation.evaluate import Floats
from rewardserve.training.settings.validation import ConfigError


def assign_folds(items: Sequence[Item], n_folds: int, salt: str) -> tuple[int, ...]:
    """Fold in which each item is held out. A group is in one fold, whatever sources it comes from.

    The groups of each source, in the order of `sha256(f"{salt}:{group}")`, are dealt round robin; with as many folds as
    groups, each group is held out alone. A group that an earlier source has already dealt stays, and counts for its fold.
    """
    of_source: dict[str, set[str]] = {}
    for item in items:
        of_source.setdefault(item.source, set()).add(item.group)
    fold_of: dict[str, int] = {}
    for groups in of_source.values():
        n_in = [0] * n_folds
        for group in groups & fold_of.keys():
            n_in[fold_of[group]] += 1
        for group in sorted(groups - fold_of.keys(), key=lambda g: hashlib.sha256(f"{salt}:{g}".encode()).digest()):
            # The emptiest fold, the first of equals: round robin if no group came before.
            fold_of[group] = n_in.index(min(n_in))
            n_in[fold_of[group]] += 1
    return tuple(fold_of[item.group] for item in items)


def refuse_heads_in_one_fold(table: FeedbackTable, fold_P: Sequence[int], head_names: Sequence[str]) -> None:
    """Raise `ConfigError` for a head that a fold would leave without a training pair."""
    for head in head_names:
        n = len({fold for fold, item in zip(fold_P, table.items, strict=True) if item.head == head and not item.made})
        if n < 2:
            raise ConfigError(
                f"head {head!r}: its pairs fall into {n} fold; cross-validation needs two. Give its source groups "
                "(group_key), or more of them."
            )


def refuse_empty(held_in: FeedbackTable, head_names: Sequence[str]) -> None:
    """Raise `ConfigError` for a head without a training pair."""
    missing = sorted(set(head_names) - {item.head for item in held_in.items if not item.made})
    if missing:
        raise ConfigError(
            f"heads {missing}: in one fold every training pair has a response that is held out. Use fewer folds, or groups "
            "that keep equal responses together (group_key)."
        )


def split_fold(table: FeedbackTable, fold_P: Sequence[int], fold: int) -> tuple[FeedbackTable, FeedbackTable]:
    """Pairs to train on and held-out pairs, over the same numbered sequences, so that features keep their rows.

    A made pair is never held out, and trains only where its own group and that of its donor are not held out.
    """
    groups = {pair.group for f, pair in zip(fold_P, table.items, strict=True) if f == fold}
    held_P = [f == fold and not pair.made for f, pair in zip(fold_P, table.items, strict=True)]
    train_P = [f != fold and pair.donor_group not in groups for f, pair in zip(fold_P, table.items, strict=True)]
    held_in, held_out = (subset(table, keep_P, renumber=False) for keep_P in (train_P, held_P))
    return replace(held_in, dropped={}), replace(held_out, dropped={})


def standardise(scores_NH: Floats, held_in: FeedbackTable, head_names: Sequence[str]) -> Floats:
    """Divide each head's scores by the deviation (after subtracting the mean) over the responses it was trained on."""
    out_NH = np.empty_like(scores_NH)
    for h, head in enumerate(head_names):
        own = [
            rows for rows, item in zip(held_in.rows, held_in.items, strict=True) if item.head == head and not item.made
        ]
        seen_N = scores_NH[sorted({number for rows in own for number in rows}), h]
        if not seen_N.std() > 0:
            raise NothingToFit(f"head {head!r} gives every response it was trained on the same score")
        out_NH[:, h] = (scores_NH[:, h] - seen_N.mean()) / seen_N.std()
    return out_NH


def pool(table: FeedbackTable, fold_P: Sequence[int], scores_of: Mapping[int, Floats]) -> tuple[FeedbackTable, Floats]:
    """One table and one array of scores in which every pair is scored by the fold that held it out.

    A sequence that two folds hold out occurs twice: it has two scores. Made pairs are left out.
    """
    is_real_P = [not item.made for item in table.items]
    table, fold_P = subset(table, is_real_P, renumber=False), list(compress(fold_P, is_real_P))
    number: dict[tuple[int, int], int] = {}
    rows = tuple(
        tuple(number.setdefault((fold, s), len(number)) for s in of_item)
        for fold, of_item in zip(fold_P, table.rows, strict=True)
    )
    sequences: tuple[TokenSequence, ...] = tuple(table.sequences[s] for _, s in number)
    scores_NH = np.stack([scores_of[fold][s] for fold, s in number])
    return replace(table, sequences=sequences, rows=rows, twins=()), scores_NH

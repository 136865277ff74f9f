"""Outputs of the network that an item trains, with their shares of its weight: its head, or members of an ensemble.

Independent of torch.
"""

from __future__ import annotations

import hashlib
from bisect import bisect
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from math import exp, factorial

from rewardserve.training.dataset.feedback import Item
from rewardserve.training.dataset.sequences import FeedbackTable, subset
from rewardserve.training.settings.model_config import ModelConfig
from rewardserve.training.settings.validation import ConfigError

Shares = tuple[tuple[int, float], ...]
"""Numbers of the outputs that an item trains, each with a factor of the item's weight; none of them zero."""

_COUNT_LIMIT = 12
_COUNTS = tuple(accumulate(exp(-1) / factorial(k) for k in range(_COUNT_LIMIT)))
"""Distribution function of a Poisson variable of mean 1: how often a draw with replacement from many items has one of them."""


def trained_outputs(items: Sequence[Item], config: ModelConfig, seed: int) -> list[Shares]:
    """Outputs that each item trains. Raise `ConfigError` where a member would have none."""
    if config.members == 1:
        share_of: dict[str, Shares] = {name: ((h, 1.0),) for h, name in enumerate(config.heads)}
        return [share_of[item.head] for item in items]
    if config.member_data == "all":
        shares: list[Shares] = [tuple((m, 1.0) for m in range(config.members)) for _ in items]
    elif config.member_data == "folds":
        shares = _folds(items, config.members, seed)
    else:
        shares = [_drawn(item, config.members, seed) for item in items]
    idle = sorted(set(range(config.members)) - {m for each in shares for m, _ in each})
    if idle:
        raise ConfigError(
            f"model.member_data: {config.member_data} leaves member {idle[0] + 1} of {config.members} without data. Lower "
            "model.members, or set model.member_data: all."
        )
    return shares


def of_output(table: FeedbackTable, shares: Sequence[Shares], output: int) -> FeedbackTable:
    """The items that train one output, with their weights for it, over the same sequences."""
    factors = [dict(each).get(output, 0.0) for each in shares]
    own = subset(table, [factor > 0 for factor in factors], renumber=False)
    kept = [factor for factor in factors if factor > 0]
    items = (item.with_weight(item.weight * factor) for item, factor in zip(own.items, kept, strict=True))
    return replace(own, items=tuple(items))


def _drawn(item: Item, n_members: int, seed: int) -> Shares:
    """Bootstrap (Oza and Russell 2001): counts of Poisson; an item that no member has drawn is given to one.

    A draw depends on seed, member and content of the item alone, not on order or other items.
    """
    counts = [bisect(_COUNTS, _uniform(f"{seed}:{m}:{_content(item)}")) for m in range(n_members)]
    found = tuple((m, float(count)) for m, count in enumerate(counts) if count)
    return found or ((int(_uniform(f"{seed}:{_content(item)}") * n_members), 1.0),)


def _folds(items: Sequence[Item], n_members: int, seed: int) -> list[Shares]:
    """Groups one by one to the members, in the order of their digests."""
    groups = sorted({item.group for item in items}, key=lambda group: _uniform(f"{seed}:{group}"))
    member_of = {group: i % n_members for i, group in enumerate(groups)}
    return [((member_of[item.group], 1.0),) for item in items]


def _content(item: Item) -> str:
    return "\n".join((item.group, *item.texts))


def _uniform(key: str) -> float:
    """A number in [0, 1) by the digest of a text."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:6]) / 2**48

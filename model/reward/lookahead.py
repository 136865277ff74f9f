"""Combine the reward of a response with the rewards of its continuations. Standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

LookaheadReward = Literal["min", "mean"] | float
"""How rewards are combined; a number is a quantile, from 0 (the least) to 1."""


def combine_lookahead(own: float, later: Sequence[float], by: LookaheadReward) -> float:
    """The least or the mean of all these rewards, or a quantile, with straight lines between neighbours.

    The result lies between the least and the largest reward, so a cap of these is a cap of it.
    """
    rewards = sorted((own, *later))
    if by == "min":
        return rewards[0]
    if by == "mean":
        mean = sum(each / len(rewards) for each in rewards)  # divided first: a sum might overflow
        return min(max(mean, rewards[0]), rewards[-1])
    place = by * (len(rewards) - 1)
    below = min(int(place), len(rewards) - 1)
    share = place - below
    above = rewards[min(below + 1, len(rewards) - 1)]
    return (1.0 - share) * rewards[below] + share * above

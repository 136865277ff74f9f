"""The values at the tokens of a response as colours. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

N_LEVELS = 4
"""Classes of colour on each side of no change: `up1` to `up4`, `down1` to `down4`."""


class HeatToken(NamedTuple):
    """A token, its raw score if the response ended there, the change from the token before, and its class."""

    text: str
    value: float
    change: float
    level: str


def heat(
    texts: Sequence[str], values: Sequence[Mapping[str, float]], weights: Sequence[tuple[str, float]]
) -> list[HeatToken]:
    """The tokens with the weighted sum of their heads. Colours are of the change, as a part of the largest one."""
    raw = [sum(weight * heads.get(name, 0.0) for name, weight in weights) for heads in values]
    changes = [0.0, *(after - before for before, after in pairwise(raw))][: len(raw)]
    largest = max((abs(each) for each in changes), default=0.0) or 1.0
    return [
        HeatToken(text, value, change, _level(change / largest))
        for text, value, change in zip(texts, raw, changes, strict=True)
    ]


def _level(share: float) -> str:
    level = min(N_LEVELS, int(abs(share) * N_LEVELS + 0.5))
    return "" if not level else f"{'up' if share > 0.0 else 'down'}{level}"

"""Standardise the ratings of training items: less their mean, divided by their standard deviation. Pure.

A scale is fitted for each source and head; where ratings compare within a prompt only, the mean is that of the prompt.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean, pstdev

from rewardserve.training.dataset.feedback import Graded
from rewardserve.training.dataset.leakage import prompt_key
from rewardserve.training.dataset.sequences import FeedbackTable
from rewardserve.training.settings.validation import ConfigError


@dataclass(frozen=True, slots=True)
class RatingScale:
    """Scale of the ratings of one source and head. `mean` is 0 where the mean of each prompt is subtracted."""

    source: str
    head: str
    n: int
    mean: float
    std: float
    scale: str

    def __str__(self) -> str:
        """One line of a report."""
        centre = "less the mean of their prompt" if self.scale == "prompt" else f"less {self.mean:.4g}"
        return f"{self.n:,} ratings of {self.source} for {self.head}: {centre}, divided by {self.std:.4g}"


def standardised(table: FeedbackTable) -> tuple[FeedbackTable, tuple[RatingScale, ...]]:
    """The table with standardised ratings, and their scales. Raise `ConfigError` if the ratings of a source do not differ."""
    numbers: dict[tuple[str, str], list[int]] = defaultdict(list)
    for i, item in enumerate(table.items):
        if item.kind == "ratings":
            numbers[item.source, item.head].append(i)
    if not numbers:
        return table, ()
    items, scales = list(table.items), []
    for (source, head), own in numbers.items():
        rated = [item for i in own if isinstance(item := items[i], Graded)]
        changed, scale = _standardised(rated, source, head)
        scales.append(scale)
        for i, item in zip(own, changed, strict=True):
            items[i] = item
    return replace(table, items=tuple(items)), tuple(scales)


def _standardised(rated: Sequence[Graded], source: str, head: str) -> tuple[list[Graded], RatingScale]:
    scale = rated[0].scale
    values = _less_prompt(rated) if scale == "prompt" else [item.values[0] for item in rated]
    mean, std = fmean(values), pstdev(values)
    if not std > 0:
        raise ConfigError(f"the {len(values)} training ratings of {source} for head {head!r} do not differ")
    made = [replace(item, values=((value - mean) / std,)) for item, value in zip(rated, values, strict=True)]
    return made, RatingScale(source, head, len(values), mean, std, scale)


def _less_prompt(rated: Sequence[Graded]) -> list[float]:
    of_prompt: dict[tuple[str, bytes], list[float]] = defaultdict(list)
    keys = [(item.group, prompt_key(item)) for item in rated]
    for key, item in zip(keys, rated, strict=True):
        of_prompt[key].append(item.values[0])
    return [item.values[0] - fmean(of_prompt[key]) for key, item in zip(keys, rated, strict=True)]

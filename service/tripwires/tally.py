"""Sums over the samples of a run, and nothing but sums: those of several replicas, added up, are those of one.

Every entry only grows, so that each may be exported as a counter; a number with a sign is two entries, `_up` and `_down`.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import sqrt
from operator import add

from model.traits import NAMES, OF_IDS, OF_TEXT

_SIGNED = ("level", "audit", "audited_level", "distance")
_WITH_SQUARES = ("level", "spread", "distance", *NAMES)
ENTRIES: tuple[str, ...] = (
    "samples", "responses", "texts", "spreads", "distances", "audited", "groups", "flat_groups", "saturated", "capped",
    "repeats", "echoes",
    *(f"{name}_{side}" for name in _SIGNED for side in ("up", "down")), "spread", *NAMES,
    *(f"{name}_squared" for name in _WITH_SQUARES),
)  # fmt: skip
"""`responses` are samples of which it is known where the response begins, `texts` those whose text is. `repeats` are texts
that the run sent before for the same prompt, `echoes` for another one; `flat_groups` are groups of responses to one prompt
that all have the same reward."""

_AT = {name: i for i, name in enumerate(ENTRIES)}
_COUNT_OF = {
    **dict.fromkeys(("level", "saturated", "capped"), "samples"),
    **dict.fromkeys(OF_IDS, "responses"),
    **dict.fromkeys((*OF_TEXT, "repeats", "echoes"), "texts"),
    **dict.fromkeys(("audit", "audited_level"), "audited"),
    "spread": "spreads",
    "distance": "distances",
    "flat_groups": "groups",
}


class Tally:
    """One number for each of `ENTRIES`."""

    __slots__ = ("sums",)

    def __init__(self, sums: Iterable[float] | None = None) -> None:
        self.sums: list[float] = [0.0] * len(ENTRIES) if sums is None else [*sums]

    def __getitem__(self, name: str) -> float:
        """An entry."""
        return self.sums[_AT[name]]

    def __add__(self, other: Tally) -> Tally:
        """What both have seen."""
        return Tally(map(add, self.sums, other.sums))

    def count(self, name: str, amount: float = 1.0) -> None:
        """Add to one entry."""
        self.sums[_AT[name]] += amount

    def count_signed(self, name: str, amount: float) -> None:
        """Add to the entry for its side."""
        self.sums[_AT[f"{name}_up" if amount >= 0 else f"{name}_down"]] += abs(amount)

    def count_squared(self, name: str, amount: float) -> None:
        """Add a number and its square."""
        self.sums[_AT[name]] += amount
        self.sums[_AT[f"{name}_squared"]] += amount * amount

    def n_of(self, name: str) -> float:
        """How many samples have this number."""
        return self[_COUNT_OF[name]]

    def mean(self, name: str) -> float | None:
        """Over the samples that have it; None if none has."""
        n = self.n_of(name)
        total = self[f"{name}_up"] - self[f"{name}_down"] if name in _SIGNED else self[name]
        return total / n if n else None

    def deviation(self, name: str) -> float | None:
        """The standard deviation over the samples that have it; None if none has."""
        mean = self.mean(name)
        if mean is None:
            return None
        return sqrt(max(0.0, self[f"{name}_squared"] / self.n_of(name) - mean * mean))

"""Pages of a run as if some trip wires did not exist: those of the other wires, and of the votes of the others. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from rewardserve.service.tripwires.alert import VOTE


def page_without(
    wires: Collection[str], pages: Iterable[tuple[str, int]], votes: Sequence[Mapping[str, int]], needed: float
) -> int | None:
    """Step of the first page without these wires. `pages`: wire and step of each page; `votes` by step, `needed` for a page."""
    others = [step for wire, step in pages if wire != VOTE and wire not in wires]
    voted = (
        step
        for step, by_wire in enumerate(votes)
        if sum(n for wire, n in by_wire.items() if wire not in wires) >= needed
    )
    return min([*others, *([step] if (step := next(voted, None)) is not None else [])], default=None)


def votes_of(wires: Mapping[str, Mapping[str, Any]], statistics: Mapping[str, float]) -> dict[str, int]:
    """Votes by wire: one beyond its threshold, two beyond twice the threshold, as `Wire.weight` counts them.

    `wires`: entries of `GET /tripwires/{run}/details` by name.
    """
    over = {name: statistics.get(name, 0.0) / wire["threshold"] for name, wire in wires.items() if wire["votes"]}
    return {name: 2 if ratio > 2.0 else 1 for name, ratio in over.items() if ratio > 1.0}

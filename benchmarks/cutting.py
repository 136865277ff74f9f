"""How rows that are all there at once are cut into batches, for each kind of engine. Pure; places in, places out.

The server's planner sees rows arrive over time; here the whole workload waits.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

Row = tuple[int, ...]
Batch = list[int]
"""Places of rows in the workload."""


def in_order_of_arrival(rows: Sequence[Row], size: int) -> list[Batch]:
    """So many rows a batch, whatever their length."""
    return [list(range(i, min(i + size, len(rows)))) for i in range(0, len(rows), size)]


def by_length(rows: Sequence[Row], budget: int) -> list[Batch]:
    """Longest first; rows times the longest row stays within the budget."""
    longest_first = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    batches: list[Batch] = []
    for i in longest_first:
        # The first of a batch is its longest.
        if batches and (len(batches[-1]) + 1) * len(rows[batches[-1][0]]) <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def by_tokens(rows: Sequence[Row], budget: int) -> list[Batch]:
    """In order of arrival, as many as the budget of real tokens takes."""
    return _filled(range(len(rows)), [len(row) for row in rows], budget)


def by_prefix(rows: Sequence[Row], budget: int) -> list[Batch]:
    """Rows that begin alike side by side; a row costs what it adds to the row before it."""
    order = sorted(range(len(rows)), key=lambda i: rows[i])
    added = [0] * len(rows)
    for before, i in zip([None, *order], order, strict=False):
        added[i] = len(rows[i]) - (common(rows[before], rows[i]) if before is not None else 0)
    return _filled(order, added, budget)


def common(a: Row, b: Row) -> int:
    """How many tokens two rows begin with in common."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _filled(order: Sequence[int], costs: Sequence[int], budget: int) -> list[Batch]:
    """Greedy; a row that is larger than the budget rides alone."""
    batches: list[Batch] = []
    left = 0
    for i in order:
        if not batches or costs[i] > left:
            batches.append([])
            left = budget
        batches[-1].append(i)
        left -= costs[i]
    return batches

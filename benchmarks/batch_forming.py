"""How rows that are all there at once are cut into batches, for each kind of engine. Pure: rows in, places out.

The server's planner sees rows arrive over time; here the whole workload waits. Knows no model.
"""

from __future__ import annotations

from collections.abc import Sequence

from rewardserve.model.common_prefix import row_key
from rewardserve.service.inference.planner import BatchLimits, QueueEntry, plan

Row = tuple[int, ...]
Batch = list[int]
"""Places of rows in the workload."""

_LARGEST = 16_384  # what a prefix group may take at most, as in the server


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


def planned(rows: Sequence[Row], budget: int) -> list[Batch]:
    """As the server's planner does for a scorer that shares beginnings. Equal rows are one row."""
    places: dict[Row, list[int]] = {}
    for i, row in enumerate(rows):
        places.setdefault(row, []).append(i)
    distinct = list(places)
    waiting = tuple(QueueEntry(i, len(row), 0.0, row_key(row)) for i, row in enumerate(distinct))
    limits = BatchLimits(max_tokens=_LARGEST, linger_s=0.0, target_tokens=budget)
    batches: list[Batch] = []
    while waiting:
        todo = plan(waiting, limits, sum, 0.0, shares_prefixes=True)
        batches.append([place for entry in todo.batch for place in places[distinct[entry.entry_id]]])
        waiting = todo.waiting
    return batches


def _filled(order: Sequence[int], costs: Sequence[int], budget: int) -> list[Batch]:
    """Greedy; a row that is larger than the budget has a batch of its own."""
    batches: list[Batch] = []
    left = 0
    for i in order:
        if not batches or costs[i] > left:
            batches.append([])
            left = budget
        batches[-1].append(i)
        left -= costs[i]
    return batches

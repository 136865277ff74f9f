"""Divide rows that are all present at once into batches, for each kind of engine. Pure: rows in, row indices out.

The server's planner receives rows over time; here the whole workload is queued. Independent of any model.
"""

from __future__ import annotations

from collections.abc import Sequence

from rewardserve.model.common_prefix import row_key
from rewardserve.service.inference.planner import BatchLimits, QueueEntry, plan

Row = tuple[int, ...]
Batch = list[int]
"""Indices of rows in the workload."""

_LARGEST = 16_384  # maximum size of a prefix group, as in the server


def in_order_of_arrival(rows: Sequence[Row], size: int) -> list[Batch]:
    """`size` rows a batch in order of arrival, whatever their length."""
    return [list(range(i, min(i + size, len(rows)))) for i in range(0, len(rows), size)]


def by_length(rows: Sequence[Row], budget: int) -> list[Batch]:
    """Longest rows first; rows times the longest row stays within the budget."""
    longest_first = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    batches: list[Batch] = []
    for i in longest_first:
        # The first row of a batch is its longest.
        if batches and (len(batches[-1]) + 1) * len(rows[batches[-1][0]]) <= budget:
            batches[-1].append(i)
        else:
            batches.append([i])
    return batches


def by_tokens(rows: Sequence[Row], budget: int) -> list[Batch]:
    """In order of arrival, as many rows as fit into the budget of real tokens."""
    return _filled(range(len(rows)), [len(row) for row in rows], budget)


def planned(rows: Sequence[Row], budget: int) -> list[Batch]:
    """Batches of the server's planner for a scorer that shares prefixes. Equal rows count as one row."""
    places: dict[Row, list[int]] = {}
    for i, row in enumerate(rows):
        places.setdefault(row, []).append(i)
    distinct = list(places)
    waiting = {i: QueueEntry(i, len(row), 0.0, row_key(row)) for i, row in enumerate(distinct)}
    limits = BatchLimits(max_tokens=_LARGEST, linger_s=0.0, target_tokens=budget)
    batches: list[Batch] = []
    while waiting:
        batch = plan(list(waiting.values()), limits, 0.0, shares_prefixes=True).batch
        batches.append([place for entry in batch for place in places[distinct[entry.entry_id]]])
        for entry in batch:
            del waiting[entry.entry_id]
    return batches


def _filled(order: Sequence[int], costs: Sequence[int], budget: int) -> list[Batch]:
    """Fill batches greedily; a row larger than the budget gets a batch alone."""
    batches: list[Batch] = []
    left = 0
    for i in order:
        if not batches or costs[i] > left:
            batches.append([])
            left = budget
        batches[-1].append(i)
        left -= costs[i]
    return batches

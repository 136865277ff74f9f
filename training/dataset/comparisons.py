"""The pairs in feedback of any kind: a table in which each item says which of two responses is better.

Figures, calibration and the convex start of a head are those of pairs. A ranking holds a pair for every two responses of
different ranks. Ratings and labels are compared within their prompt (and group, head and source); where no prompt of a source
has two that differ, across its prompts. Ties make no pair. Pure; independent of torch.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from rewardserve.training.dataset.feedback import Pair, kinds_of
from rewardserve.training.dataset.leakage import prompt_key
from rewardserve.training.dataset.sequences import FeedbackTable, subset

MOST_PARTNERS = 32
"""Responses of one prompt with which each is compared: the number of pairs does not grow with the square of a large prompt."""


@dataclass(frozen=True, slots=True)
class _Response:
    """One response of an item: its place in the table, its place in the item, and its sequence."""

    item: int
    place: int
    row: int


def comparisons(table: FeedbackTable) -> FeedbackTable:
    """The table of pairs over the same numbered sequences; a table of decided pairs is returned unchanged."""
    if kinds_of(table.items) in ((), ("pairs",)):
        decided = [item.values[0] != item.values[1] for item in table.items]
        return table if all(decided) else subset(table, decided, renumber=False)
    pairs: list[Pair] = []
    rows: list[tuple[int, int]] = []
    for better, worse in _ordered(table):
        pairs.append(_pair(table, better, worse))
        rows.append((better.row, worse.row))
    return replace(table, items=tuple(pairs), rows=tuple(rows), dropped={})


def _ordered(table: FeedbackTable) -> Iterator[tuple[_Response, _Response]]:
    for i, rows in enumerate(table.rows):
        if len(rows) > 1:
            yield from _decided(table, combinations([_Response(i, k, row) for k, row in enumerate(rows)], 2))
    for prompts in _alone(table).values():
        within = [pair for responses in prompts.values() for pair in _decided(table, _partners(responses))]
        across = [response for responses in prompts.values() for response in responses]
        yield from within or _decided(table, _partners(across))


def _alone(table: FeedbackTable) -> dict[tuple[str, ...], dict[tuple[str, bytes], list[_Response]]]:
    """Items of one response by kind, head and source, and in these by group and prompt."""
    found: dict[tuple[str, ...], dict[tuple[str, bytes], list[_Response]]] = defaultdict(lambda: defaultdict(list))
    for i, (item, rows) in enumerate(zip(table.items, table.rows, strict=True)):
        if len(rows) == 1:
            found[item.kind, item.head, item.source][item.group, prompt_key(item)].append(_Response(i, 0, rows[0]))
    return found


def _partners(responses: Sequence[_Response]) -> Iterator[tuple[_Response, _Response]]:
    """Every two of a few responses; of many, each with the next ones in an order that does not depend on their values."""
    if len(responses) <= 2 * MOST_PARTNERS:
        yield from combinations(responses, 2)
        return
    mixed = sorted(responses, key=lambda r: hashlib.sha256(b"%d" % r.row).digest())
    for step in range(1, MOST_PARTNERS // 2 + 1):
        yield from zip(mixed, mixed[step:] + mixed[:step], strict=True)


def _decided(
    table: FeedbackTable, twos: Iterator[tuple[_Response, _Response]]
) -> Iterator[tuple[_Response, _Response]]:
    """The better response first; ties and equal sequences are left out."""
    for a, b in twos:
        value_a, value_b = (table.items[r.item].values[r.place] for r in (a, b))
        if value_a != value_b and a.row != b.row:
            yield (a, b) if value_a > value_b else (b, a)


def _pair(table: FeedbackTable, better: _Response, worse: _Response) -> Pair:
    first, second = table.items[better.item], table.items[worse.item]
    if isinstance(first, Pair):
        return first
    return Pair(
        id=f"{first.id}#{better.place + 1}>{second.id}#{worse.place + 1}",
        source=first.source,
        group=first.group,
        head=first.head,
        chosen=first.samples[better.place],
        rejected=second.samples[worse.place],
        chosen_text=first.texts[better.place],
        rejected_text=second.texts[worse.place],
        weight=first.weight,
    )

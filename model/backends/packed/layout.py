"""Layout of the segments of a batch in one packed row, and the plan of their attention.

Pure: ranges of integers. The packed row is all segments one after the other, N tokens; a *scored* token is the last one
of a row, S of them. A segment attends causally to itself and fully to its ancestors in the tree; its descendants lie right
behind it, so one range of queries attends to one range of keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rewardserve.model.backends.packed.tree import PrefixTree, Row

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class KeyRange:
    """Range of keys: of the packed row, or of the cached prefix with the index `given`."""

    first: int
    last: int
    given: int | None = None


@dataclass(frozen=True, slots=True)
class SelfSpan:
    """Queries that attend to their segment, and the segment's whole chain of keys, from position 0 on."""

    queries: Range
    keys: Range
    chain: tuple[KeyRange, ...]
    first_position: int  # of the queries; they are consecutive
    n_keys: int  # of the chain


@dataclass(frozen=True, slots=True)
class PrefixSpan:
    """Queries that attend to all of an ancestor segment. Spans of one `depth` have no query in common."""

    queries: Range
    keys: KeyRange
    depth: int


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """All attention of one layer: `self_spans` first, then `prefix_spans` are merged into it."""

    n_queries: int
    self_spans: tuple[SelfSpan, ...]
    prefix_spans: tuple[PrefixSpan, ...]


@dataclass(frozen=True, slots=True)
class PrefixedTree:
    """A tree whose rows all begin with the first `n_given` tokens of a cached prefix."""

    tree: PrefixTree
    given: int | None = None
    n_given: int = 0


@dataclass(frozen=True, slots=True)
class Layout:
    """The packed row: `ids` and `positions` of N tokens, `scored` indices of S tokens, `rows[i]` among those.

    `every` is the plan in which all N tokens are queries, `last` the one in which only the scored ones are.
    """

    ids: Row
    positions: Row
    scored: tuple[int, ...]
    rows: tuple[int, ...]
    every: AttentionPlan
    last: AttentionPlan


def lay_out(parts: Sequence[PrefixedTree]) -> Layout:
    """Concatenate the trees into one packed row. Rows are numbered through all parts."""
    ids: list[int] = []
    positions: list[int] = []
    scored: list[int] = []
    rows: list[int] = []
    every: list[SelfSpan] = []
    every_prefix_spans: list[PrefixSpan] = []
    last: list[SelfSpan] = []
    last_prefix_spans: list[PrefixSpan] = []
    for part in parts:
        segments, base, n_given = part.tree.segments, len(ids), part.n_given
        starts = [base]
        for segment in segments:
            starts.append(starts[-1] + len(segment.ids))
        is_end = set(part.tree.ends)
        # How many scored tokens lie before segment i: the queries of the last layer.
        scored_before = [len(scored)]
        for i in range(len(segments)):
            scored_before.append(scored_before[-1] + (i in is_end))
        root = (KeyRange(0, n_given, part.given),) if n_given else ()
        if root:
            every_prefix_spans.append(PrefixSpan((base, starts[-1]), root[0], 0))
            last_prefix_spans.append(PrefixSpan((scored_before[0], scored_before[-1]), root[0], 0))
        chains: list[tuple[KeyRange, ...]] = []
        for i, segment in enumerate(segments):
            first, end = starts[i], starts[i + 1]
            position = n_given + segment.start
            chain = (*(root if segment.parent is None else chains[segment.parent]), KeyRange(first, end))
            chains.append(chain)
            every.append(SelfSpan((first, end), (first, end), chain, position, position + end - first))
            if i in is_end:
                at = scored_before[i]
                last.append(
                    SelfSpan((at, at + 1), (first, end), chain, position + end - first - 1, position + end - first)
                )
                scored.append(end - 1)
            if segment.after > i + 1:
                every_prefix_spans.append(PrefixSpan((end, starts[segment.after]), KeyRange(first, end), len(chain)))
                last_prefix_spans.append(
                    PrefixSpan((scored_before[i + 1], scored_before[segment.after]), KeyRange(first, end), len(chain))
                )
            ids.extend(segment.ids)
            positions.extend(range(position, position + end - first))
        rows.extend(scored_before[end] for end in part.tree.ends)
    return Layout(
        ids=tuple(ids),
        positions=tuple(positions),
        scored=tuple(scored),
        rows=tuple(rows),
        every=AttentionPlan(len(ids), tuple(every), tuple(every_prefix_spans)),
        last=AttentionPlan(len(scored), tuple(last), tuple(last_prefix_spans)),
    )

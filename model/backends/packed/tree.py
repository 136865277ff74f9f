"""Build the prefix tree of rows of token ids, in which every common prefix is stored once.

Pure, standard library only: knows ids and lengths, no tensors. Common prefixes are found by the ids, never by a hint of the
client. Rows that are equal become one; one row may end where others go on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from rewardserve.model.common_prefix import common_prefix_length, row_key

Row = tuple[int, ...]

_SPLIT_TOKENS = 8
"""Cost of computing a common prefix as a separate segment, in tokens that it must save: one more kernel call a layer."""

_MERGE_SHARE = 1 / 32
"""Cost for every token after the prefix, in tokens: its attention to the prefix is merged with that to its segment."""


@dataclass(frozen=True, slots=True)
class Segment:
    """A run of tokens that is computed once, at positions `start` to `start + len(ids)` of every row through it.

    `parent` is the index of the segment before it, None at the beginning of a row; indices are in pre-order, so the
    descendants of a segment are at `index + 1` to `after`.
    """

    ids: Row
    start: int
    parent: int | None
    after: int

    @property
    def end(self) -> int:
        """The position after its last token: the length of a row that ends here."""
        return self.start + len(self.ids)


@dataclass(frozen=True, slots=True)
class PrefixTree:
    """Segments in pre-order, and for each row the index of the segment that it ends with."""

    segments: tuple[Segment, ...]
    ends: tuple[int, ...]

    @property
    def n_tokens(self) -> int:
        """Number of tokens that are computed."""
        return sum(len(s.ids) for s in self.segments)


@dataclass(slots=True, eq=False)
class _Node:
    """A node where rows diverge or end. `row` is any row through it."""

    row: Row
    end: int
    is_end: bool = False
    children: list[_Node] = field(default_factory=list)
    n_below: int = 0  # tokens of the rows through it, behind `end`

    def is_worth_sharing(self, start: int) -> bool:
        """Whether computing positions `start` to `end` once saves more than it costs."""
        n_ways = len(self.children) + self.is_end
        return (self.end - start) * (n_ways - 1) >= _SPLIT_TOKENS + _MERGE_SHARE * self.n_below


def without_sharing(rows: Sequence[Row]) -> PrefixTree:
    """A tree in which every row is a separate segment, equal ones too."""
    segments = tuple(Segment(row, 0, None, i + 1) for i, row in enumerate(rows))
    return PrefixTree(segments, tuple(range(len(rows))))


def build_prefix_tree(rows: Sequence[Row]) -> PrefixTree:
    """The tree of these rows, none empty, with the common prefixes that are worth sharing."""
    by_key = {row_key(row): row for row in rows}
    segments, end_of = _emit(_radix(sorted(by_key), by_key))
    return PrefixTree(segments, tuple(end_of[row] for row in rows))


def _radix(keys: Sequence[bytes], rows: dict[bytes, Row]) -> _Node:
    """The radix tree of sorted distinct keys, built from the common prefixes of neighbours."""
    root = _Node((), 0)
    path = [root]  # from the root to the newest leaf
    before = b""
    for key in keys:
        row, shared = rows[key], common_prefix_length(before, key)
        left = None
        while path[-1].end > shared:
            left = path.pop()
        if path[-1].end < shared and left is not None:
            fork = _Node(row, shared, children=[left])
            path[-1].children[-1] = fork
            path.append(fork)
        leaf = _Node(row, len(row), is_end=True)
        path[-1].children.append(leaf)
        path.append(leaf)
        before = key
    _count(root)
    return root


def _count(root: _Node) -> None:
    order = [root]
    for node in order:
        order.extend(node.children)
    for node in reversed(order):
        node.n_below = sum(child.end - node.end + child.n_below for child in node.children)


def _emit(root: _Node) -> tuple[tuple[Segment, ...], dict[Row, int]]:
    """Segments in pre-order. A prefix that is not worth sharing is computed for each of its rows."""
    found: list[tuple[Row, int, int | None]] = []  # ids, start, parent
    end_of: dict[Row, int] = {}
    todo: list[tuple[_Node, int, int | None]] = [(child, 0, None) for child in reversed(root.children)]
    while todo:
        node, start, parent = todo.pop()
        stands = not node.children or node.is_worth_sharing(start)
        if stands or node.is_end:
            if node.is_end:
                end_of[node.row[: node.end]] = len(found)
            found.append((node.row[start : node.end], start, parent))
        below = (node.end, len(found) - 1) if stands else (start, parent)
        todo.extend((child, *below) for child in reversed(node.children))
    after = [i + 1 for i in range(len(found))]
    for i in range(len(found) - 1, -1, -1):
        parent = found[i][2]
        if parent is not None:
            after[parent] = max(after[parent], after[i])
    return tuple(Segment(*each, after[i]) for i, each in enumerate(found)), end_of

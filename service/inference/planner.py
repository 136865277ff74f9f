"""Choose the rows of the next batch, and when to plan again.

A pure function of queue, limits and time. Knows nothing of asyncio, HTTP, torch or metrics; `batcher` executes the plan.

The oldest entry is always in the batch, so none starves: an entry behind k older ones waits for k batches at most.
Where the scorer pads, the batch is filled with the entries nearest in length, to keep padding small. Where the scorer
computes a shared prefix once, it is filled by prefix groups: entries that begin with the same tokens, the longest shared
prefix first, then the next oldest entry with its group. A group that fits in a batch is never split.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter

from rewardserve.model.common_prefix import ID_BYTES, common_prefix_length

MIN_SHARED_TOKENS = 16
"""Fewest tokens in common of a prefix group: computing fewer twice costs less than keeping the rows together."""

_SPLIT_STRETCH = 8
"""Shortest piece of a split group, in lengths of its shared prefix, which each piece computes again."""


@dataclass(slots=True, eq=False)
class QueueEntry:
    """A queued row, for the planner. An older entry has the smaller `entry_id`.

    `key` is the row as bytes (`rewardserve.model.common_prefix`), so that rows with a common prefix are neighbours when sorted.
    Only a scorer that shares prefixes needs it. `arrived_at` is in seconds.
    """

    entry_id: int
    n_tokens: int
    arrived_at: float
    key: bytes


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """`max_tokens` bounds the cost of a batch of several rows; a single row is always allowed.

    A batch that costs `target_tokens` gains nothing from more rows, so it is dispatched; only a prefix group that would be
    split may exceed it, up to `max_tokens`. `linger_s` is how long the oldest entry waits for rows that are being
    encoded. `max_padding` is the share of the cost that may be padding. Only the `window` oldest are considered.
    """

    max_tokens: int
    linger_s: float
    target_tokens: int | None = None
    max_padding: float = 0.25  # not measured yet
    window: int = 512

    @property
    def target(self) -> int:
        """`target_tokens`, never above `max_tokens`."""
        return self.max_tokens if self.target_tokens is None else min(self.target_tokens, self.max_tokens)


@dataclass(frozen=True, slots=True)
class Plan:
    """The next batch; empty: wait. `replan_at` None: plan again at the next event."""

    batch: tuple[QueueEntry, ...]
    replan_at: float | None = None


def plan(
    entries: Sequence[QueueEntry],
    limits: BatchLimits,
    now: float,
    *,
    pads_rows: bool = False,
    shares_prefixes: bool = False,
    n_expected: int = 0,
    busy: bool = False,
) -> Plan:
    """Plan the next batch, for a scorer that can take one. No two entries may stand for equal rows.

    `pads_rows`, `shares_prefixes`: as of the scorer. `n_expected` counts rows that are being encoded.
    `busy`: the scorer is working, so only a batch that cannot grow any more is started.
    """
    if not entries:
        return Plan(())
    by_age = sorted(entries, key=_age)
    window = by_age[: limits.window]
    batch = (
        _PrefixBatch(window, limits, pads_rows).fill(window[0])
        if shares_prefixes
        else _batch_by_length(window, limits, pads_rows)
    )
    if len(batch) == len(by_age):  # the queue would be empty, so later rows could still join this batch
        dispatch_at = by_age[0].arrived_at + limits.linger_s
        if busy:
            return Plan(())
        if n_expected and now < dispatch_at:
            return Plan((), dispatch_at)
    return Plan(tuple(batch))


def batch_cost(lengths: Sequence[int], pads_rows: bool) -> int:
    """Token positions of a batch of rows with these lengths, padding included. Never smaller for more rows.

    Where prefixes are shared, a length counts the tokens that the row adds to the batch; 0 for an equal row.
    """
    return len(lengths) * max(lengths, default=0) if pads_rows else sum(lengths)


def added_lengths(entries: Sequence[QueueEntry], shares_prefixes: bool) -> list[int]:
    """Tokens that each of these rows adds to a batch, for `batch_cost`. Sorted by key if they share prefixes."""
    if not shares_prefixes:
        return [t.n_tokens for t in entries]
    return [t.n_tokens - max(0, n) for t, n in zip(entries, _shared_with_previous(entries), strict=False)]


_age = attrgetter("entry_id")
_key = attrgetter("key")
_length = attrgetter("n_tokens")


# -- rows without shared prefixes: by length -------------------------------------------------------------


def _batch_by_length(by_age: Sequence[QueueEntry], limits: BatchLimits, pads_rows: bool) -> list[QueueEntry]:
    """The oldest row and the n nearest to it in length, or in age where the scorer does not pad; longest first."""
    lengths = [t.n_tokens for t in by_age]
    nearest = by_age
    if pads_rows:
        # The oldest itself comes first: at distance 0, and older than its equals.
        distances = [abs(n - lengths[0]) for n in lengths]
        order = sorted(range(len(by_age)), key=distances.__getitem__)
        nearest, lengths = [by_age[i] for i in order], [lengths[i] for i in order]
    return sorted(nearest[: _largest_fit(lengths, limits, pads_rows)], key=_length, reverse=True)


def _largest_fit(lengths: Sequence[int], limits: BatchLimits, pads_rows: bool) -> int:
    """Find by bisection how many of the first rows fit while a larger number that was tried does not; 1 always fits."""
    low, middle, high = 1, len(lengths), len(lengths) + 1
    while high - low > 1:
        low, high = (middle, high) if _fits(lengths[:middle], limits, pads_rows) else (low, middle)
        middle = (low + high) // 2
    return low


def _fits(lengths: Sequence[int], limits: BatchLimits, pads_rows: bool) -> bool:
    cost = batch_cost(lengths, pads_rows)
    return cost <= limits.target and sum(lengths) >= (1.0 - limits.max_padding) * cost


# -- rows with shared prefixes: by prefix group --------------------------------------------------------------------

_Range = tuple[int, int]
"""Range of rows: from the first up to, not including, the second."""

_NO_NEIGHBOUR = -1
"""Less than any number of common tokens: before the first row, and after the last."""


class _PrefixBatch:
    """A batch that is filled by prefix groups.

    Rows sorted by key are in depth-first order of the tree of all prefixes, so a prefix group is a range of them.
    """

    def __init__(self, by_age: Sequence[QueueEntry], limits: BatchLimits, pads_rows: bool) -> None:
        self._by_key = sorted(by_age, key=_key)
        self._shared = _shared_with_previous(self._by_key)
        self._limits = limits
        self._pads_rows = pads_rows
        self._added_lengths: list[int] = []  # tokens that each selected row adds to the batch
        self._selected: list[_Range] = []
        self._split: deque[tuple[int, int]] = (
            deque()
        )  # groups to split: their oldest row, and the length of their selected prefix

    def fill(self, oldest: QueueEntry) -> list[QueueEntry]:
        """Select `oldest`, then rows by shared tokens, down to those that share none: whole groups where they fit. By key.

        A group that fits in no batch is split when its oldest row is selected, or here, if most of its prefix
        is selected already, as in a conversation of which every turn is a row.
        """
        self._add_row_and_groups(bisect_left(self._by_key, oldest.key, key=_key), _NO_NEIGHBOUR)
        while self._split:
            self._add_row_and_groups(*self._split.popleft())
        return [self._by_key[i] for first, last in sorted(self._selected) for i in range(first, last)]

    def _add_row_and_groups(self, row: int, depth: int) -> None:
        """Select a row that shares `depth` tokens with the batch, and the groups that share more with it."""
        if not self._add_range((row, row + 1), depth):
            return
        for shared, groups in self._related_groups(row, depth):
            for group in groups:
                if not self._add_range(group, shared) and self._may_be_split(group, shared):
                    self._split.append((min(range(*group), key=self._age), shared))

    def _may_be_split(self, group: _Range, depth: int) -> bool:
        first, last = group
        prefix_selected = any(self._shared[i] <= 2 * depth for i in range(first + 1, last))
        return prefix_selected and batch_cost(self._lengths_of(group, 0), self._pads_rows) > self._limits.target

    def _add_range(self, group: _Range, depth: int) -> bool:
        """Select all of a group or none of it. The first group is always selected."""
        added = self._lengths_of(group, depth)
        fits = not self._added_lengths or batch_cost([*self._added_lengths, *added], self._pads_rows) <= self._limit(
            depth
        )
        if fits:
            self._added_lengths += added
            self._selected.append(group)
        return fits

    def _lengths_of(self, group: _Range, depth: int) -> list[int]:
        first, last = group
        rest = [self._by_key[i].n_tokens - self._shared[i] for i in range(first + 1, last)]
        return [self._by_key[first].n_tokens - max(depth, 0), *rest]

    def _limit(self, depth: int) -> int:
        return min(self._limits.max_tokens, max(self._limits.target, _SPLIT_STRETCH * depth))

    def _related_groups(self, row: int, above: int) -> Iterator[tuple[int, list[_Range]]]:
        """Falling numbers of tokens above `above`, with the groups that share so many with `row`, by age.

        Each step is an ancestor of `row` in the tree, with its other children.
        """
        first, last = row, row + 1
        while (depth := max(self._shared[first], self._shared[last])) > above:
            low, high = first, last
            while self._shared[low] >= depth:
                low -= 1
            while self._shared[high] >= depth:
                high += 1
            groups = [*self._children(low, first, depth), *self._children(last, high, depth)]
            yield depth, sorted(groups, key=lambda group: min(map(self._age, range(*group))))
            first, last = low, high

    def _children(self, first: int, last: int, depth: int) -> list[_Range]:
        """Split a range of rows with `depth` tokens in common where neighbours have only those in common."""
        cuts = [first, *(i for i in range(first + 1, last) if self._shared[i] <= depth), last]
        return list(pairwise(cuts)) if first < last else []

    def _age(self, row: int) -> int:
        return self._by_key[row].entry_id


def _shared_with_previous(by_key: Sequence[QueueEntry]) -> list[int]:
    """Tokens that each row has in common with the one before, 0 below `MIN_SHARED_TOKENS`; `_NO_NEIGHBOUR` at both ends."""
    between = [_n_shared_tokens(a.key, b.key) for a, b in pairwise(by_key)]
    return [_NO_NEIGHBOUR, *between, _NO_NEIGHBOUR]


def _n_shared_tokens(a: bytes, b: bytes) -> int:
    """Length of the shared prefix of two different keys in tokens, 0 below `MIN_SHARED_TOKENS`."""
    least = MIN_SHARED_TOKENS * ID_BYTES
    return common_prefix_length(a, b) if a[:least] == b[:least] else 0  # nearly always different at once

"""Which waiting tickets ride in the next batch, and when to look again.

A pure function of the waiting room, the limits and the time. It knows nothing of asyncio, HTTP, torch
or metrics; `batcher` does what the plan says.

The oldest ticket always rides, so nobody starves: behind k older tickets one waits for k batches at most.
Where the scorer pads, it is joined by those nearest to it in length, so that little is padded. Where the scorer
computes a common beginning once, it is joined by its family: those that begin with the same tokens, the closest
first, then the next oldest with theirs. A family that fits in a batch is never torn apart.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from operator import attrgetter

from rewardserve.model.common_prefix import ID_BYTES, n_common

Cost = Callable[[Sequence[int]], int]
"""Token positions that a batch of rows with these lengths takes. Not smaller for more rows."""

LEAST_SHARED = 16
"""Fewer tokens in common are no family: computing them twice costs less than keeping together."""

_STRETCH = 8
"""The pieces of a torn family compute their common beginning again each; it shall be at most an eighth of a piece."""


@dataclass(slots=True, eq=False)
class Ticket:
    """What there is to know of a row in the waiting room. Whoever came earlier has the smaller `ticket_id`.

    `key` is the row itself in bytes (`rewardserve.model.common_prefix`), so that sorted keys have common beginnings side by side.
    Only a scorer that shares prefixes needs it. `arrived_at` is in seconds.
    """

    ticket_id: int
    n_tokens: int
    arrived_at: float
    key: bytes


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_tokens` bounds the cost of a batch of several rows; a single row always may ride.

    A batch that costs `enough_tokens` gains nothing from more, so it leaves; only a family that would be torn
    apart may take more, up to `max_tokens`. `linger_s` is how long the oldest waits for company that is on its
    way. `max_padding` is the share of the cost that may be padding. Only the `window` oldest are considered.
    """

    max_tokens: int
    linger_s: float
    enough_tokens: int | None = None
    max_padding: float = 0.25  # not measured yet
    window: int = 512

    @property
    def enough(self) -> int:
        """`enough_tokens`, never above `max_tokens`."""
        return self.max_tokens if self.enough_tokens is None else min(self.enough_tokens, self.max_tokens)


@dataclass(frozen=True, slots=True)
class Plan:
    """Every ticket is in exactly one of the two. `look_again_at` None: when something happens."""

    batch: tuple[Ticket, ...]
    waiting: tuple[Ticket, ...]
    look_again_at: float | None = None


def plan(
    tickets: Sequence[Ticket],
    limits: Limits,
    cost: Cost,
    now: float,
    *,
    shares: bool = False,
    coming: int = 0,
    busy: bool = False,
) -> Plan:
    """What to do now that there is a seat at the scorer. No two tickets may stand for equal rows.

    `shares`: whether the scorer computes common beginnings once. `coming` counts rows that will be here soon.
    `busy`: the scorer has something to do, so only a batch that can not grow any more is worth starting.
    """
    if not tickets:
        return Plan((), ())
    by_age = sorted(tickets, key=_age)
    window = by_age[: limits.window]
    batch = _Boarding(window, limits, cost).fill(window[0]) if shares else _ride_with_alike(window, limits, cost)
    if len(batch) == len(by_age):  # nobody would be left behind: there is room for those who come
        leaves_at = by_age[0].arrived_at + limits.linger_s
        if busy:
            return Plan((), tuple(by_age))
        if coming and now < leaves_at:
            return Plan((), tuple(by_age), leaves_at)
        return Plan(tuple(batch), ())
    riding = {t.ticket_id for t in batch}
    return Plan(tuple(batch), tuple(t for t in by_age if t.ticket_id not in riding))


def lengths_added(tickets: Sequence[Ticket], shares: bool) -> list[int]:
    """By how much each of these rows makes a batch longer: what `cost` asks for. Sorted by key if they share."""
    if not shares:
        return [t.n_tokens for t in tickets]
    return [t.n_tokens - max(0, n) for t, n in zip(tickets, _shared_with_neighbour(tickets), strict=False)]


_age = attrgetter("ticket_id")
_key = attrgetter("key")
_length = attrgetter("n_tokens")


# -- rows that share nothing: alike in length ------------------------------------------------------------


def _ride_with_alike(by_age: Sequence[Ticket], limits: Limits, cost: Cost) -> list[Ticket]:
    """The oldest and the n nearest to it in length, or in age where nothing is padded; longest first."""
    lengths = [t.n_tokens for t in by_age]
    nearest = by_age
    if cost(lengths) > sum(lengths):
        # The oldest itself comes first: at distance 0, and older than its equals.
        distances = [abs(n - lengths[0]) for n in lengths]
        order = sorted(range(len(by_age)), key=distances.__getitem__)
        nearest, lengths = [by_age[i] for i in order], [lengths[i] for i in order]

    def fits(n: int) -> bool:
        taken = cost(lengths[:n])
        return taken <= limits.enough and sum(lengths[:n]) >= (1.0 - limits.max_padding) * taken

    return sorted(nearest[: _largest(fits, len(nearest))], key=_length, reverse=True)


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """By bisection, some n in 1..most that fits while a larger one that was tried does not; 1 always counts."""
    if fits(most):
        return most
    low, high = 1, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


# -- rows that share what they begin with: families -------------------------------------------------------------

_Range = tuple[int, int]
"""From the first up to, not including, the second."""

_NOBODY = -1
"""Fewer than no tokens in common: before the first row, and after the last."""


class _Boarding:
    """One batch that fills up, family by family.

    Sorted by key, the rows are a walk through the tree of all their beginnings, so a family is a range of them.
    """

    def __init__(self, by_age: Sequence[Ticket], limits: Limits, cost: Cost) -> None:
        self._kin = sorted(by_age, key=_key)
        self._shared = _shared_with_neighbour(self._kin)
        self._limits = limits
        self._cost = cost
        self._adds: list[int] = []  # by how much each row on board makes the batch longer
        self._on_board: list[_Range] = []
        self._torn: deque[tuple[int, int]] = deque()  # families by their oldest member, with what is on board of them

    def fill(self, oldest: Ticket) -> list[Ticket]:
        """`oldest`, its closest relatives, and so on to strangers: whole families where they fit. By key.

        A family that fits in no batch is torn apart when its own oldest rides, or here, if most of what it begins
        with is on board already: think of a conversation of which every turn is a row.
        """
        self._enter(bisect_left(self._kin, oldest.key, key=_key), _NOBODY)
        while self._torn:
            self._enter(*self._torn.popleft())
        return [self._kin[i] for first, last in sorted(self._on_board) for i in range(first, last)]

    def _enter(self, member: int, depth: int) -> None:
        """Let in one who has `depth` tokens in common with those on board, and who has more in common with it."""
        if not self._board((member, member + 1), depth):
            return
        for shared, families in self._relatives(member, depth):
            for family in families:
                if not self._board(family, shared) and self._may_be_torn(family, shared):
                    self._torn.append((min(range(*family), key=self._age), shared))

    def _may_be_torn(self, family: _Range, depth: int) -> bool:
        first, last = family
        begins_on_board = any(self._shared[i] <= 2 * depth for i in range(first + 1, last))
        return begins_on_board and self._cost(self._added(family, 0)) > self._limits.enough

    def _board(self, family: _Range, depth: int) -> bool:
        """Let in all of a family or nobody. The first on board is always let in."""
        added = self._added(family, depth)
        fits = not self._adds or self._cost([*self._adds, *added]) <= self._limit(depth)
        if fits:
            self._adds += added
            self._on_board.append(family)
        return fits

    def _added(self, family: _Range, depth: int) -> list[int]:
        first, last = family
        rest = [self._kin[i].n_tokens - self._shared[i] for i in range(first + 1, last)]
        return [self._kin[first].n_tokens - max(depth, 0), *rest]

    def _limit(self, depth: int) -> int:
        return min(self._limits.max_tokens, max(self._limits.enough, _STRETCH * depth))

    def _relatives(self, member: int, above: int) -> Iterator[tuple[int, list[_Range]]]:
        """Ever fewer tokens, more than `above`, and who has so many in common with `member`: families, by age.

        Each step is an ancestor of `member` in the tree, with its other children.
        """
        first, last = member, member + 1
        while (depth := max(self._shared[first], self._shared[last])) > above:
            low, high = first, last
            while self._shared[low] >= depth:
                low -= 1
            while self._shared[high] >= depth:
                high += 1
            families = [*self._children(low, first, depth), *self._children(last, high, depth)]
            yield depth, sorted(families, key=lambda family: min(map(self._age, range(*family))))
            first, last = low, high

    def _children(self, first: int, last: int, depth: int) -> list[_Range]:
        """A range of rows with `depth` tokens in common, cut where neighbours have no more than those in common."""
        cuts = [first, *(i for i in range(first + 1, last) if self._shared[i] <= depth), last]
        return list(pairwise(cuts)) if first < last else []

    def _age(self, row: int) -> int:
        return self._kin[row].ticket_id


def _shared_with_neighbour(kin: Sequence[Ticket]) -> list[int]:
    """Tokens that each has in common with the one before, 0 where it is no family; `_NOBODY` at both ends."""
    between = [_n_shared(a.key, b.key) for a, b in pairwise(kin)]
    return [_NOBODY, *between, _NOBODY]


def _n_shared(a: bytes, b: bytes) -> int:
    """How many tokens two different keys begin with in common, 0 where it is no family."""
    least = LEAST_SHARED * ID_BYTES
    return n_common(a, b) if a[:least] == b[:least] else 0  # nearly always told apart at once

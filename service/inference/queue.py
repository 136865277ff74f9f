"""Who waits for which row, and how each of them is answered.

Equal rows are one row with several who wait for it, wherever they meet: in the waiting room, or when one of them
is riding already. A row that was scored before needs no seat. Every caller is answered once: when all its rows
have an outcome, or with a refusal; who leaves gives its places back and disturbs nobody. Knows neither scorers
nor batches nor the time; nothing here waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from rewardserve.model.common_prefix import key_of
from rewardserve.model.scorer import HeadScores
from rewardserve.service.errors import RowFailed, ServiceError
from rewardserve.service.inference.outcomes import RowOutcome, RowScored
from rewardserve.service.inference.planner import Ticket
from rewardserve.service.inference.score_cache import ScoreCache


@dataclass(slots=True, eq=False)
class Call:
    """One caller: the outcomes of its rows as they come, and the future that it waits for.

    `outcomes` has no gap once `answered` has a result.
    """

    arrived_at: float
    deadline: float
    outcomes: list[RowOutcome]
    answered: asyncio.Future[None]
    rows: list[Row]
    n_open: int = 0

    def take(self, place: int, outcome: RowOutcome) -> None:
        """One outcome. With the last one the caller is answered."""
        self.outcomes[place] = outcome
        self.n_open -= 1
        if not self.n_open and not self.answered.done():
            self.answered.set_result(None)


Place = tuple[Call, int]


@dataclass(slots=True, eq=False)
class Row(Ticket):
    """A row in the house, and the places in the callers' answers that its outcome goes to.

    `latecomers` came while it was riding; None: it is not.
    """

    ids: tuple[int, ...]
    name: bytes
    places: list[Place]
    latecomers: list[Place] | None = None

    @property
    def all_places(self) -> list[Place]:
        """Of everybody who waits for this row, latecomers too."""
        return [*self.places, *self.latecomers] if self.latecomers else self.places

    def leave(self, call: Call) -> bool:
        """Forget this caller. Whether anybody is left."""
        self.places = [place for place in self.places if place[0] is not call]
        if self.latecomers:
            self.latecomers = [place for place in self.latecomers if place[0] is not call]
        return bool(self.places or self.latecomers)


class WaitingRoom:
    """All callers and rows that are in the house. Belongs to one event loop."""

    def __init__(self, cache: ScoreCache, with_keys: bool) -> None:
        self._cache = cache
        self._with_keys = with_keys
        self._calls: set[Call] = set()
        self._rows: dict[bytes, Row] = {}  # by name
        self._waiting: dict[int, Row] = {}  # those that are not riding, by ticket, the oldest first
        self._next_id = 0

    # -- callers --------------------------------------------------------------------------------------------

    def join(self, rows: Sequence[tuple[int, ...]], now: float, deadline: float, remembered: bool = True) -> Call:
        """A caller with its rows, some of which may have an outcome at once, if they are `remembered`. It must `leave`."""
        call = Call(now, deadline, [_PENDING] * len(rows), asyncio.get_running_loop().create_future(), [])
        for place, ids in enumerate(rows):
            key = key_of(ids)
            name = self._cache.name(key)
            if remembered and (heads := self._cache.get(name)) is not None:
                call.outcomes[place] = RowScored(heads, 0.0, 0.0, 0.0, cached=True)
            else:
                row = self._rows.get(name) or self._add(name, ids, key if self._with_keys else b"", now)
                (row.places if row.latecomers is None else row.latecomers).append((call, place))
                call.rows.append(row)
        call.n_open = len(call.rows)
        if call.n_open:
            self._calls.add(call)
        else:
            call.answered.set_result(None)
        return call

    def leave(self, call: Call) -> None:
        """Give the places back. A row that is riding finishes its ride, and nobody waits for it."""
        self._calls.discard(call)
        if not call.answered.done():
            call.answered.cancel()
        elif not call.answered.cancelled():
            call.answered.exception()  # retrieved: asyncio would complain of a refusal that nobody awaited
        for row in dict.fromkeys(call.rows) if call.n_open else ():
            if not row.leave(call) and self._waiting.pop(row.ticket_id, None) is not None:
                del self._rows[row.name]
        call.rows.clear()  # a call and its rows that know each other would wait for the garbage collector

    def refuse(self, call: Call, error: ServiceError) -> None:
        """Answer a caller with an error, and forget it."""
        if not call.answered.done():
            call.answered.set_exception(error)
        self.leave(call)

    def refuse_all(self, error: ServiceError) -> None:
        """Answer everybody with an error. Nobody and nothing is left, neither waiting nor riding."""
        self.refuse_callers(error)
        self._rows.clear()

    def refuse_callers(self, error: ServiceError) -> None:
        """Answer everybody with an error. Rows that are riding may still finish their ride, for nobody."""
        for call in tuple(self._calls):
            self.refuse(call, error)

    def late(self, now: float) -> list[Call]:
        """Callers whose deadline has come."""
        return [call for call in self._calls if call.deadline <= now]

    def next_deadline(self) -> float | None:
        """When the first caller will be late."""
        return min((call.deadline for call in self._calls), default=None)

    # -- rows -----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """How many rows wait for a ride."""
        return len(self._waiting)

    @property
    def tickets(self) -> list[Ticket]:
        """The rows that wait for a ride, the oldest first."""
        return [*self._waiting.values()]

    def depart(self, tickets: Sequence[Ticket]) -> list[Row]:
        """These rows are riding from now on, until each has been settled or has failed."""
        rows = [self._waiting.pop(ticket.ticket_id) for ticket in tickets]
        for row in rows:
            row.latecomers = []
        return rows

    def settle(self, row: Row, heads: HeadScores, started_at: float, forward_s: float, n_computed: float) -> None:
        """The scores of a row go to everybody who waits for it, and its price is split among them."""
        del self._rows[row.name]
        self._cache.put(row.name, heads)
        places = row.all_places
        n_computed /= len(places) or 1
        for call, place in places:
            queue_s = started_at - call.arrived_at  # negative for those who came during the ride
            call.take(place, RowScored(heads, queue_s if queue_s > 0.0 else 0.0, forward_s, n_computed))

    def fail(self, row: Row, error: RowFailed) -> None:
        """Those who were on board are told. Whoever came during the ride had no try yet: for them the row waits again."""
        failed, row.places, row.latecomers = row.places, row.latecomers or [], None
        if row.places:
            self._wait(row)
        else:
            del self._rows[row.name]
        for call, place in failed:
            call.take(place, error)

    def _add(self, name: bytes, ids: tuple[int, ...], key: bytes, now: float) -> Row:
        row = self._rows[name] = Row(0, len(ids), now, key, ids, name, [])
        self._wait(row)
        return row

    def _wait(self, row: Row) -> None:
        row.ticket_id = self._next_id
        self._waiting[row.ticket_id] = row
        self._next_id += 1


_PENDING = RowFailed("nobody has looked at this row yet. This is a bug in the batcher.")

"""The queue: which requests wait for which rows, and how each request is resolved.

Equal rows are one row with several waiters, in the queue and in a batch that is in flight. A cached row is not
queued. Every request is resolved once: when all its rows have an outcome, or with an error; a cancelled request
leaves the queue without any effect on others. Knows neither scorers nor batches nor the time; nothing here waits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from rewardserve.model.common_prefix import row_key
from rewardserve.model.scorer import HeadScores
from rewardserve.service.errors import RowFailed, ServiceError
from rewardserve.service.inference.outcomes import RowOutcome, RowScored
from rewardserve.service.inference.planner import QueueEntry
from rewardserve.service.inference.score_cache import ScoreCache


@dataclass(slots=True, eq=False)
class PendingRequest:
    """The rows of one call of `Batcher.score`: the outcomes so far, and the future that the call awaits.

    `outcomes` has no gap once `resolved` has a result.
    """

    arrived_at: float
    deadline: float
    outcomes: list[RowOutcome]
    resolved: asyncio.Future[None]
    rows: list[PendingRow]
    n_unresolved: int = 0

    def resolve(self, index: int, outcome: RowOutcome) -> None:
        """Store one outcome. The last one resolves the request."""
        self.outcomes[index] = outcome
        self.n_unresolved -= 1
        if not self.n_unresolved and not self.resolved.done():
            self.resolved.set_result(None)


Waiter = tuple[PendingRequest, int]


@dataclass(slots=True, eq=False)
class PendingRow(QueueEntry):
    """A row that is queued or in flight, with its waiters: requests, and the row's index within each.

    `late_waiters` came while the row was in flight; None: it is queued.
    """

    ids: tuple[int, ...]
    digest: bytes
    waiters: list[Waiter]
    late_waiters: list[Waiter] | None = None

    @property
    def all_waiters(self) -> list[Waiter]:
        """All waiters of this row, including late ones."""
        return [*self.waiters, *self.late_waiters] if self.late_waiters else self.waiters

    def remove(self, request: PendingRequest) -> bool:
        """Drop the waiters of this request. Return whether any waiter is left."""
        self.waiters = [waiter for waiter in self.waiters if waiter[0] is not request]
        if self.late_waiters:
            self.late_waiters = [waiter for waiter in self.late_waiters if waiter[0] is not request]
        return bool(self.waiters or self.late_waiters)


class RequestQueue:
    """All requests and rows that are queued or in flight. Belongs to one event loop."""

    def __init__(self, cache: ScoreCache, with_keys: bool) -> None:
        self._cache = cache
        self._with_keys = with_keys
        self._requests: set[PendingRequest] = set()
        self._rows: dict[bytes, PendingRow] = {}  # by digest
        self._waiting: dict[int, PendingRow] = {}  # queued rows by entry id, the oldest first
        self._next_id = 0

    # -- requests -------------------------------------------------------------------------------------------

    def submit(
        self, rows: Sequence[tuple[int, ...]], now: float, deadline: float, use_cache: bool = True
    ) -> PendingRequest:
        """Add a request. Cached rows have their outcome at once if `use_cache`. The caller must `remove` the request."""
        request = PendingRequest(
            now, deadline, [_NOT_SCORED_YET] * len(rows), asyncio.get_running_loop().create_future(), []
        )
        for index, ids in enumerate(rows):
            key = row_key(ids)
            digest = self._cache.digest(key)
            if use_cache and (heads := self._cache.get(digest)) is not None:
                request.outcomes[index] = RowScored(heads, 0.0, 0.0, 0.0, cached=True)
            else:
                row = self._rows.get(digest) or self._add(digest, ids, key if self._with_keys else b"", now)
                (row.waiters if row.late_waiters is None else row.late_waiters).append((request, index))
                request.rows.append(row)
        request.n_unresolved = len(request.rows)
        if request.n_unresolved:
            self._requests.add(request)
        else:
            request.resolved.set_result(None)
        return request

    def remove(self, request: PendingRequest) -> None:
        """Drop a request. Its rows in flight are still finished."""
        self._requests.discard(request)
        if not request.resolved.done():
            request.resolved.cancel()
        elif not request.resolved.cancelled():
            request.resolved.exception()  # retrieved, or asyncio would warn of an exception that was never awaited
        for row in dict.fromkeys(request.rows) if request.n_unresolved else ():
            if not row.remove(request) and self._waiting.pop(row.entry_id, None) is not None:
                del self._rows[row.digest]
        request.rows.clear()  # breaks the cycle of request and rows, which would wait for the garbage collector

    def reject(self, request: PendingRequest, error: ServiceError) -> None:
        """Resolve a request with an error, and drop it."""
        if not request.resolved.done():
            request.resolved.set_exception(error)
        self.remove(request)

    def reject_all(self, error: ServiceError) -> None:
        """Resolve all requests with an error, and drop all rows, queued and in flight."""
        self.reject_requests(error)
        self._rows.clear()

    def reject_requests(self, error: ServiceError) -> None:
        """Resolve all requests with an error. Rows in flight may still finish."""
        for request in tuple(self._requests):
            self.reject(request, error)

    def expired(self, now: float) -> list[PendingRequest]:
        """Requests past their deadline."""
        return [request for request in self._requests if request.deadline <= now]

    def next_deadline(self) -> float | None:
        """The earliest deadline of all requests."""
        return min((request.deadline for request in self._requests), default=None)

    # -- rows -----------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        """Number of queued rows."""
        return len(self._waiting)

    @property
    def entries(self) -> list[QueueEntry]:
        """The queued rows, the oldest first."""
        return [*self._waiting.values()]

    def dispatch(self, entries: Sequence[QueueEntry]) -> list[PendingRow]:
        """Move these rows from the queue into flight, until each is completed or has failed."""
        rows = [self._waiting.pop(entry.entry_id) for entry in entries]
        for row in rows:
            row.late_waiters = []
        return rows

    def complete(
        self, row: PendingRow, heads: HeadScores, started_at: float, forward_s: float, n_computed: float
    ) -> None:
        """Resolve a row with its scores for all its waiters, and split the computed tokens among them."""
        del self._rows[row.digest]
        self._cache.put(row.digest, heads)
        waiters = row.all_waiters
        n_computed /= len(waiters) or 1
        for request, index in waiters:
            queue_s = started_at - request.arrived_at  # negative for late waiters
            request.resolve(index, RowScored(heads, queue_s if queue_s > 0.0 else 0.0, forward_s, n_computed))

    def fail(self, row: PendingRow, error: RowFailed) -> None:
        """Resolve a row with an error for the waiters of this batch. For late waiters it is queued again."""
        failed, row.waiters, row.late_waiters = row.waiters, row.late_waiters or [], None
        if row.waiters:
            self._enqueue(row)
        else:
            del self._rows[row.digest]
        for request, index in failed:
            request.resolve(index, error)

    def _add(self, digest: bytes, ids: tuple[int, ...], key: bytes, now: float) -> PendingRow:
        row = self._rows[digest] = PendingRow(0, len(ids), now, key, ids, digest, [])
        self._enqueue(row)
        return row

    def _enqueue(self, row: PendingRow) -> None:
        row.entry_id = self._next_id
        self._waiting[row.entry_id] = row
        self._next_id += 1


_NOT_SCORED_YET = RowFailed("this row was not scored. This is a bug in the batcher.")

"""One task owns the waiting room, asks the planner who rides, and drives.

The forward runs on a thread of its own, one at a time. Every ticket ends: with its scores, with an error
of its own, with a refusal, or because its caller left. Knows nothing of HTTP, samples or metrics; what
became of each batch is told to `on_batch`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace

from model.scorer import BatchScores, OutOfMemory, Scorer, TokenBatch
from service.batching.outcomes import (
    BatchDone,
    BatchOutcome,
    RowOutcome,
    RowScored,
    checked,
    outcome_of,
    row_error,
    wrong_number,
)
from service.batching.planner import Limits, Ticket, plan
from service.clock import Clock
from service.errors import BatcherStopped, DeadlineExceeded, RowFailed, ScorerBug, ServiceError, ShuttingDown

_MORE_FAILURES = 8
"""How many failed forwards a batch may cost beyond those that finding one poisonous row takes."""

FAILING_AFTER = 8
"""So many batches in a row without one score are no accident of their rows."""

_FAILING_FOR_S = 30.0
"""Whoever is not ready is sent no work, and without work no batch can show that the trouble has passed."""


@dataclass(frozen=True, slots=True, eq=False)
class _Entry:
    """A ticket with what it stands for: the ids, and the future that its caller waits for."""

    ticket: Ticket
    ids: tuple[int, ...]
    outcome: asyncio.Future[RowOutcome]


class Batcher:
    """Start it, let callers `score`, stop it. All methods belong to one event loop."""

    def __init__(self, scorer: Scorer, limits: Limits, clock: Clock, on_batch: Callable[[BatchDone], None]) -> None:
        self._scorer = scorer
        self._limits = limits
        self._clock = clock
        self._on_batch = on_batch
        self._waiting: dict[int, _Entry] = {}
        self._riding: list[_Entry] = []
        self._failed_in_a_row = 0
        self._failed_at = -math.inf
        self._next_id = 0
        self._coming = 0
        self._closed = False
        self._changed = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="scorer")
        self._task: asyncio.Task[None] | None = None

    # -- what callers and operators see ---------------------------------------------------------------------

    @property
    def n_samples(self) -> int:
        """How many rows wait for a seat in a batch."""
        return len(self._waiting)

    @property
    def n_tokens(self) -> int:
        """How many tokens wait."""
        return sum(e.ticket.n_tokens for e in self._waiting.values())

    @property
    def limits(self) -> Limits:
        """The limits of now: running out of memory lowers the budget."""
        return self._limits

    @property
    def is_alive(self) -> bool:
        """Whether somebody drives. False before `start`, after `stop`, and after a bug of ours."""
        return self._task is not None and not self._task.done()

    @property
    def n_failing(self) -> int:
        """How many batches in a row had not one score, while that says something of the scorer; otherwise 0.

        It does from `FAILING_AFTER` on, until a row is scored, or until nothing was tried for a while.
        """
        is_fresh = self._clock.now() < self._failed_at + _FAILING_FOR_S
        return self._failed_in_a_row if self._failed_in_a_row >= FAILING_AFTER and is_fresh else 0

    def start(self) -> None:
        """Begin to drive."""
        self._task = asyncio.create_task(self._drive(), name="batcher")

    async def stop(self) -> None:
        """Take no new rows, finish those that are here, then end. Cancelling this refuses what is left."""
        self._closed = True
        self._changed.set()
        try:
            if self._task is not None:
                await asyncio.gather(self._task, return_exceptions=True)
        finally:
            self._thread.shutdown(wait=False, cancel_futures=True)

    async def give_up(self) -> None:
        """Take nothing new and refuse everything that is not finished. A forward that runs is not waited for."""
        if self._task is not None:
            self._task.cancel()
        await self.stop()

    @contextmanager
    def expecting(self, n_rows: int) -> Iterator[None]:
        """While the body runs, `n_rows` are on their way: worth waiting for, as long as the linger allows."""
        self._coming += n_rows
        try:
            yield
        finally:
            self._coming -= n_rows
            self._changed.set()

    async def score(self, rows: Sequence[tuple[int, ...]], deadline: float = math.inf) -> list[RowOutcome]:
        """One outcome a row, in order. Raise `DeadlineExceeded`, `ShuttingDown` or `BatcherStopped` for all."""
        if self._closed:
            raise ShuttingDown("this server is shutting down; send the request to another one", retry_after_s=1.0)
        if not self.is_alive:
            raise BatcherStopped("nobody drives the scorer. This is a bug in the server.")
        entries = [self._join(ids, deadline) for ids in rows]
        self._changed.set()
        try:
            return [await entry.outcome for entry in entries]
        finally:
            for entry in entries:
                self._leave(entry)

    # -- the waiting room -----------------------------------------------------------------------------------

    def _join(self, ids: tuple[int, ...], deadline: float) -> _Entry:
        ticket = Ticket(self._next_id, len(ids), self._clock.now(), deadline)
        self._next_id += 1
        entry = _Entry(ticket, ids, asyncio.get_running_loop().create_future())
        self._waiting[ticket.ticket_id] = entry
        return entry

    def _leave(self, entry: _Entry) -> None:
        """Give the seat back. A row that is riding finishes its ride, and nobody waits for it."""
        self._waiting.pop(entry.ticket.ticket_id, None)
        if entry.outcome.done() and not entry.outcome.cancelled():
            entry.outcome.exception()  # retrieved: asyncio would complain of a refusal that nobody awaited
        entry.outcome.cancel()

    # -- the drive ------------------------------------------------------------------------------------------

    async def _drive(self) -> None:
        end: ServiceError = ShuttingDown("this server has shut down before the request was scored")
        cause: BaseException | None = None
        try:
            while not (self._closed and not self._waiting):
                await self._step()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            end = BatcherStopped(f"the batcher died of {type(error).__name__}. This is a bug in the server.")
            cause = error
        finally:
            riders, self._riding = self._riding, []
            self._refuse_all(riders, end)
        if cause is not None:
            self._report("bug", riders, error=cause)

    async def _step(self) -> None:
        self._changed.clear()
        tickets = [e.ticket for e in self._waiting.values()]
        todo = plan(tickets, self._limits, self._scorer.cost, self._clock.now(), coming=self._coming)
        for ticket in todo.expired:
            _refuse(self._waiting.pop(ticket.ticket_id), DeadlineExceeded("the deadline passed in the queue"))
        if todo.batch:
            self._riding = [self._waiting.pop(t.ticket_id) for t in todo.batch]
            self._remember(await self._ride(self._riding))
            self._riding = []
        else:
            await self._clock.wait(self._changed, todo.look_again_at)

    def _remember(self, any_score: bool) -> None:
        self._failed_in_a_row = 0 if any_score else self._failed_in_a_row + 1
        if not any_score:
            self._failed_at = self._clock.now()

    async def _ride(self, entries: Sequence[_Entry]) -> bool:
        """Score a batch; one that fails is halved, until what fails is a single row or has failed too often.

        Whether any row has a score.
        """
        any_score = False
        groups = [entries]
        failures_left = _MORE_FAILURES + 2 * len(entries).bit_length()
        while groups:
            group = groups.pop()
            started_at = self._clock.now()
            scores = await self._forward(group)
            seconds = self._clock.now() - started_at
            if isinstance(scores, BatchScores) and len(scores.rows) == len(group):
                any_score |= self._release(group, scores, started_at, seconds)
                continue
            error = scores if isinstance(scores, BaseException) else wrong_number(len(scores.rows), len(group))
            failures_left -= 1
            self._report(outcome_of(error), group, seconds, error=error)
            if isinstance(error, OutOfMemory):
                self._lower_budget(group)
            if len(group) == 1 or failures_left <= 0 or isinstance(error, ScorerBug):
                _settle_all(group, row_error(error, [e.ticket.n_tokens for e in group]))
            else:
                middle = len(group) // 2
                groups += [group[middle:], group[:middle]]
        return any_score

    async def _forward(self, group: Sequence[_Entry]) -> BatchScores | BaseException:
        """What the scorer says on its thread, or what it raises."""
        batch = TokenBatch(tuple(e.ids for e in group))

        def score() -> BatchScores | BaseException:
            # Returned, not raised: a future cannot carry every exception (a StopIteration would never arrive).
            try:
                return self._scorer.score(batch)
            except BaseException as error:
                return error

        return await asyncio.get_running_loop().run_in_executor(self._thread, score)

    def _release(self, group: Sequence[_Entry], scores: BatchScores, started_at: float, forward_s: float) -> bool:
        """Give every row of a finished forward its scores. Whether there are any."""
        n_tokens = sum(e.ticket.n_tokens for e in group)
        any_score = False
        for entry, heads in zip(group, scores.rows, strict=True):
            share = scores.tokens_computed * entry.ticket.n_tokens / n_tokens
            outcome = checked(heads, started_at - entry.ticket.arrived_at, forward_s, share)
            any_score |= isinstance(outcome, RowScored)
            _settle(entry, outcome)
        self._report("ok", group, forward_s, scores)
        return any_score

    def _lower_budget(self, group: Sequence[_Entry]) -> None:
        """What did not fit once will not fit again. A lone row says nothing about the budget of several."""
        if len(group) > 1:
            half = self._scorer.cost([e.ticket.n_tokens for e in group]) // 2
            self._limits = replace(self._limits, max_tokens=max(1, min(half, self._limits.max_tokens)))

    def _report(
        self,
        outcome: BatchOutcome,
        group: Sequence[_Entry],
        forward_s: float = 0.0,
        scores: BatchScores | None = None,
        error: BaseException | None = None,
    ) -> None:
        started_at = self._clock.now() - forward_s
        self._on_batch(
            BatchDone(
                outcome=outcome,
                n_rows=len(group),
                n_tokens=sum(e.ticket.n_tokens for e in group),
                n_computed=scores.tokens_computed if scores else 0,
                n_padding=scores.tokens_padding if scores else 0,
                forward_s=forward_s,
                queue_s=tuple(started_at - e.ticket.arrived_at for e in group),
                max_tokens=self._limits.max_tokens,
                error=error,
            )
        )

    def _refuse_all(self, riders: Sequence[_Entry], error: ServiceError) -> None:
        for entry in (*riders, *self._waiting.values()):
            _refuse(entry, error)
        self._waiting.clear()


def _settle_all(group: Sequence[_Entry], outcome: RowFailed) -> None:
    for entry in group:
        _settle(entry, outcome)


def _settle(entry: _Entry, outcome: RowOutcome) -> None:
    if not entry.outcome.done():
        entry.outcome.set_result(outcome)


def _refuse(entry: _Entry, error: ServiceError) -> None:
    if not entry.outcome.done():
        entry.outcome.set_exception(error)

"""One task that asks the planner who rides, and drives.

Forwards run on threads of their own, as many at a time as the scorer takes. A batch that fails is halved, so one
bad row spoils nobody's ride. Knows nothing of HTTP, samples or metrics; what became of each batch is told to
`on_batch`. Who waits for what is `room`'s.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

from rewardserve.model.scorer import BatchScores, OutOfMemory, Scorer, TokenBatch
from rewardserve.service.clock import Clock
from rewardserve.service.errors import (
    BatcherStopped,
    DeadlineExceeded,
    ScorerBug,
    ScorerHanging,
    ServiceError,
    ShuttingDown,
)
from rewardserve.service.inference.batch_size import Pace
from rewardserve.service.inference.outcomes import (
    BatchDone,
    BatchOutcome,
    RowOutcome,
    fault,
    outcome_of,
    row_error,
    wrong_number,
)
from rewardserve.service.inference.planner import Limits, lengths_added, plan
from rewardserve.service.inference.queue import Row, WaitingRoom
from rewardserve.service.inference.score_cache import ScoreCache
from rewardserve.service.inference.watchdog import ScorerState, Watchdog

_MORE_FAILURES = 8
"""How many failed forwards a batch may cost beyond those that finding one poisonous row takes."""

_LONGEST_FAMILY = 4
"""Budgets that a family may take that would be torn apart: everybody waits for a long batch."""

FAILING_AFTER = 8
"""So many batches in a row without one score are no accident of their rows."""

_FAILING_FOR_S = 30.0
"""Whoever is not ready is sent no work, and without work no batch can show that the trouble has passed."""


class Batcher:
    """Start it, let callers `score`, stop it. All methods belong to one event loop.

    `pace` None: the budget is the one of `limits`; otherwise it follows what forwards take. `cache` None: scores are
    not remembered. `watchdog` None: a forward may take for ever; `on_state` hears how the scorer is when that changes.
    """

    def __init__(
        self,
        scorer: Scorer,
        limits: Limits,
        clock: Clock,
        on_batch: Callable[[BatchDone], None],
        *,
        pace: Pace | None = None,
        cache: ScoreCache | None = None,
        watchdog: Watchdog | None = None,
        on_state: Callable[[ScorerState], None] = lambda state: None,
    ) -> None:
        self._scorer = scorer
        self._limits = limits
        self._pace = pace
        self._clock = clock
        self._on_batch = on_batch
        self._room = WaitingRoom(ScoreCache(0, version=0) if cache is None else cache, scorer.shares_prefixes)
        self._rides: dict[asyncio.Task[None], list[Row]] = {}
        self._watchdog = watchdog
        self._on_state = on_state
        self._state: ScorerState = "well"
        self._begun: dict[object, float] = {}  # forwards under way, by the watchdog's clock
        self._freed_at = -math.inf
        self._failed_in_a_row = 0
        self._failed_at = -math.inf
        self._coming = 0
        self._closed = False
        self._changed = asyncio.Event()
        self._threads = ThreadPoolExecutor(scorer.concurrency, thread_name_prefix="scorer")
        self._task: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    # -- what callers and operators see ---------------------------------------------------------------------

    @property
    def n_samples(self) -> int:
        """How many rows wait for a seat in a batch. Equal ones are one."""
        return len(self._room)

    @property
    def n_tokens(self) -> int:
        """How many tokens wait."""
        return sum(ticket.n_tokens for ticket in self._room.tickets)

    @property
    def limits(self) -> Limits:
        """The limits of now: what forwards take moves the budget, running out of memory lowers its bound."""
        return self._limits if self._pace is None else self._paced(self._pace.budget, self._pace.budget)

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

    @property
    def scorer_state(self) -> ScorerState:
        """Whether forwards come back. While they do not, everybody is refused."""
        return self._state

    def start(self) -> None:
        """Begin to drive."""
        self._task = asyncio.create_task(self._drive(), name="batcher")
        if self._watchdog is not None:
            self._watching = asyncio.create_task(self._watch(self._watchdog.look_every_s), name="watchdog")

    async def stop(self) -> None:
        """Take no new rows, finish those that are here, then end. Cancelling this refuses what is left.

        A forward that hangs is not waited for: nobody else waits for it either.
        """
        self._closed = True
        self._changed.set()
        self._leave_if_hanging()
        try:
            if self._task is not None:
                await asyncio.gather(self._task, return_exceptions=True)
        finally:
            if self._watching is not None:
                self._watching.cancel()
                await asyncio.gather(self._watching, return_exceptions=True)
            self._threads.shutdown(wait=False, cancel_futures=True)

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

    async def score(
        self, rows: Sequence[tuple[int, ...]], deadline: float = math.inf, *, remembered: bool = True
    ) -> list[RowOutcome]:
        """One outcome a row, in order. Raise `DeadlineExceeded`, `ShuttingDown`, `ScorerHanging` or `BatcherStopped` for all.

        `remembered` False: what a row scored before is of no interest, it is scored now.
        """
        if self._closed:
            raise ShuttingDown("this server is shutting down; send the request to another one", retry_after_s=1.0)
        if not self.is_alive:
            raise BatcherStopped("nobody drives the scorer. This is a bug in the server.")
        if self._state != "well":
            raise hanging()
        call = self._room.join(rows, self._clock.now(), deadline, remembered)
        try:
            if call.n_open:
                self._changed.set()
                await call.answered
        finally:
            self._room.leave(call)
        return call.outcomes

    # -- the drive ------------------------------------------------------------------------------------------

    async def _drive(self) -> None:
        end: ServiceError = ShuttingDown("this server has shut down before the request was scored")
        cause: BaseException | None = None
        try:
            while not self._closed or self._room or self._rides:
                await self._step()
                self._end_rides()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            end = BatcherStopped(f"the batcher died of {type(error).__name__}. This is a bug in the server.")
            cause = error
        finally:
            riders = [row for rows in self._rides.values() for row in rows]
            for ride in self._rides:
                ride.cancel()
            await asyncio.gather(*self._rides, return_exceptions=True)
            self._rides.clear()
            self._room.refuse_all(end)
        if cause is not None:
            self._on_batch(self._told("bug", riders, self._clock.now(), error=cause))

    async def _step(self) -> None:
        """Start one ride, or wait until there is a reason to look again."""
        if len(self._rides) == self._scorer.concurrency:
            await asyncio.wait(self._rides, return_when=asyncio.FIRST_COMPLETED)
            return
        self._changed.clear()
        now = self._clock.now()
        for call in self._room.late(now):
            self._room.refuse(call, DeadlineExceeded("the deadline passed in the queue"))
        todo = plan(
            self._room.tickets,
            self._next_limits,
            self._scorer.cost,
            now,
            shares=self._scorer.shares_prefixes,
            coming=self._coming,
            busy=bool(self._rides) and not self._scorer.streams,
        )
        if todo.batch:
            rows = self._room.depart(todo.batch)
            ride = asyncio.create_task(self._ride(rows), name="ride")
            ride.add_done_callback(lambda _: self._changed.set())
            self._rides[ride] = rows
        else:
            times = [at for at in (todo.look_again_at, self._room.next_deadline()) if at is not None]
            await self._clock.wait(self._changed, min(times, default=None))

    def _end_rides(self) -> None:
        for ride in [ride for ride in self._rides if ride.done()]:
            del self._rides[ride]
            ride.result()  # a bug of ours ends the drive

    @property
    def _next_limits(self) -> Limits:
        return self._limits if self._pace is None else self._paced(self._pace.budget, self._pace.next_budget)

    def _paced(self, budget: int, enough_tokens: int) -> Limits:
        longest = min(self._limits.max_tokens, _LONGEST_FAMILY * budget)
        return replace(self._limits, max_tokens=longest, enough_tokens=enough_tokens)

    # -- one ride -------------------------------------------------------------------------------------------

    async def _ride(self, rows: Sequence[Row]) -> None:
        """Score a batch; one that fails is halved, until what fails is a single row or has failed too often."""
        any_score = False
        groups = [rows]
        failures_left = _MORE_FAILURES + 2 * len(rows).bit_length()
        while groups:
            group = groups.pop()
            started_at = self._clock.now()
            scores = await self._forward(group)
            now = self._clock.now()
            # Where another forward was before it at the scorer, that one's time is not its own.
            forward_s = now - (started_at if self._scorer.streams else max(started_at, self._freed_at))
            self._freed_at = now
            if isinstance(scores, BatchScores) and len(scores.rows) == len(group):
                any_score |= self._release(group, scores, started_at, forward_s)
                continue
            error = scores if isinstance(scores, BaseException) else wrong_number(len(scores.rows), len(group))
            failures_left -= 1
            if isinstance(error, OutOfMemory):
                self._lower_bound(group)
            self._on_batch(self._told(outcome_of(error), group, started_at, forward_s, error=error))
            if len(group) == 1 or failures_left <= 0 or isinstance(error, ScorerBug):
                failure = row_error(error, [row.n_tokens for row in group])
                for row in group:
                    self._room.fail(row, failure)
            else:
                middle = len(group) // 2
                groups += [group[middle:], group[:middle]]
        self._failed_in_a_row = 0 if any_score else self._failed_in_a_row + 1
        if not any_score:
            self._failed_at = self._clock.now()

    async def _forward(self, group: Sequence[Row]) -> BatchScores | BaseException:
        """What the scorer says on its thread, or what it raises."""
        batch = TokenBatch(tuple([row.ids for row in group]))

        def score() -> BatchScores | BaseException:
            # Returned, not raised: a future cannot carry every exception (a StopIteration would never arrive).
            try:
                return self._scorer.score(batch)
            except BaseException as error:
                return error

        with self._watched():
            return await asyncio.get_running_loop().run_in_executor(self._threads, score)

    # -- forwards that do not come back -----------------------------------------------------------------------

    async def _watch(self, every_s: float) -> None:
        never = asyncio.Event()
        while True:
            await self._clock.wait(never, self._clock.now() + every_s)
            self._look()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """While the body runs, a forward is under way."""
        forward = object()
        self._begun[forward] = self._look()
        try:
            yield
        finally:
            del self._begun[forward]
            self._look()

    def _look(self) -> float:
        """See how the scorer is; when it begins to hang, nobody waits for it any longer. The watchdog's time."""
        if self._watchdog is None:
            return 0.0
        self._watchdog = self._watchdog.looks(self._clock.now())
        state = self._watchdog.state(self._begun.values(), self._scorer.concurrency)
        if state != self._state:
            self._state = state
            self._on_state(state)
            if state == "hanging":
                self._room.refuse_callers(hanging())
                self._leave_if_hanging()
        return self._watchdog.awake_s

    def _leave_if_hanging(self) -> None:
        if self._closed and self._state != "well" and self._task is not None:
            self._task.cancel()

    def _release(self, group: Sequence[Row], scores: BatchScores, started_at: float, forward_s: float) -> bool:
        """Give every row of a finished forward its scores. Whether there are any."""
        n_taken = scores.tokens_computed + scores.tokens_padding
        if self._pace is not None and n_taken > 0:
            self._pace = self._pace.after(n_taken, forward_s)
        done = self._told("ok", group, started_at, forward_s, scores)
        a_token = scores.tokens_computed / done.n_row_tokens
        any_score = False
        for row, heads in zip(group, scores.rows, strict=True):
            if (error := fault(heads)) is not None:
                self._room.fail(row, error)
            else:
                any_score = True
                self._room.settle(row, heads, started_at, forward_s, a_token * row.n_tokens)
        self._on_batch(done)
        return any_score

    def _lower_bound(self, group: Sequence[Row]) -> None:
        """What did not fit once will not fit again. A lone row says nothing about the budget of several."""
        if len(group) > 1:
            lengths = lengths_added(group, self._scorer.shares_prefixes)
            half = max(1, self._scorer.cost(lengths) // 2)
            self._limits = replace(self._limits, max_tokens=min(half, self._limits.max_tokens))

    def _told(
        self,
        outcome: BatchOutcome,
        group: Sequence[Row],
        started_at: float,
        forward_s: float = 0.0,
        scores: BatchScores | None = None,
        error: BaseException | None = None,
    ) -> BatchDone:
        waiters = [row.all_places for row in group]
        queue_s = [started_at - call.arrived_at for places in waiters for call, _ in places]
        return BatchDone(
            outcome=outcome,
            n_rows=len(group),
            n_row_tokens=sum([row.n_tokens for row in group]),
            n_tokens=sum([row.n_tokens * len(places) for row, places in zip(group, waiters, strict=True)]),
            n_computed=scores.tokens_computed if scores else 0,
            n_padding=scores.tokens_padding if scores else 0,
            forward_s=forward_s,
            queue_s=tuple([seconds if seconds > 0.0 else 0.0 for seconds in queue_s]),
            budget=self.limits.enough,
            error=error,
        )


def hanging() -> ScorerHanging:
    """What is said while forwards do not come back."""
    return ScorerHanging(
        "a forward has been under way for longer than REWARD_SCORER_TIMEOUT_S; nothing is scored until it comes back",
        retry_after_s=5.0,
    )

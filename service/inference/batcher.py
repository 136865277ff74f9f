"""Task that takes batches from the planner and runs the scorer on them.

Each forward runs on a separate thread, as many at a time as the scorer takes. A batch that fails is halved, so one
bad row fails alone. Knows nothing of HTTP, samples or metrics; `events` are notified of the result of each batch.
The waiters of each row are kept in `queue`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Sequence
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
from rewardserve.service.inference.batch_size import BatchSizeController
from rewardserve.service.inference.events import InferenceEvents
from rewardserve.service.inference.outcomes import (
    BatchOutcome,
    BatchResult,
    RowOutcome,
    batch_outcome,
    row_error,
    score_count_error,
    score_error,
)
from rewardserve.service.inference.planner import BatchLimits, added_lengths, batch_cost, plan
from rewardserve.service.inference.queue import PendingRow, RequestQueue
from rewardserve.service.inference.score_cache import ScoreCache
from rewardserve.service.inference.watchdog import ScorerState, Watchdog

_EXTRA_FAILURES = 8
"""Limit of failed forwards of a batch beyond those that isolating one bad row takes."""

_MAX_GROUP_BUDGETS = 4
"""Limit, in budgets, of a prefix group that would be split otherwise: all requests wait for a long batch."""

FAILING_AFTER = 8
"""Batches in a row without one score that mean that the scorer fails, not the rows."""

_FAILING_FOR_S = 30.0
"""Seconds without a failed batch after which the server is ready again: a server that is not ready gets no requests, and
without requests no batch can show that the failure is over."""


class Batcher:
    """Batcher: `start`, then any number of `score`, then `stop`. All methods belong to one event loop.

    `batch_size` None: the budget is that of `limits`; otherwise it follows the seconds of forwards. `cache` None: scores are
    not cached. `watchdog` None: a forward may take any time.
    """

    def __init__(
        self,
        scorer: Scorer,
        limits: BatchLimits,
        clock: Clock,
        events: InferenceEvents,
        *,
        batch_size: BatchSizeController | None = None,
        cache: ScoreCache | None = None,
        watchdog: Watchdog | None = None,
    ) -> None:
        self._scorer = scorer
        self._limits = limits
        self._batch_size = batch_size
        self._clock = clock
        self._events = events
        self._queue = RequestQueue(ScoreCache(0, version=0) if cache is None else cache, scorer.shares_prefixes)
        self._in_flight: dict[asyncio.Task[None], list[PendingRow]] = {}
        self._watchdog = watchdog
        self._state: ScorerState = "healthy"
        self._forward_started_at: dict[object, float] = {}  # forwards under way, by the watchdog's clock
        self._freed_at = -math.inf
        self._n_failed_in_a_row = 0
        self._failed_at = -math.inf
        self._n_expected = 0
        self._closed = False
        self._changed = asyncio.Event()
        self._threads = ThreadPoolExecutor(scorer.concurrency, thread_name_prefix="scorer")
        self._task: asyncio.Task[None] | None = None
        self._watchdog_task: asyncio.Task[None] | None = None

    # -- state for callers and operators --------------------------------------------------------------------

    @property
    def n_samples(self) -> int:
        """Number of queued rows. Equal rows count once."""
        return len(self._queue)

    @property
    def n_tokens(self) -> int:
        """Number of queued tokens."""
        return sum(entry.n_tokens for entry in self._queue.entries)

    @property
    def limits(self) -> BatchLimits:
        """The current limits: the seconds of forwards move the budget, out of memory lowers its bound."""
        if self._batch_size is None:
            return self._limits
        budget = self._batch_size.budget
        most = min(self._limits.max_tokens, _MAX_GROUP_BUDGETS * budget)
        return replace(self._limits, max_tokens=most, target_tokens=budget)

    @property
    def is_alive(self) -> bool:
        """Whether the batching task runs. False before `start`, after `stop`, and after a bug in the batcher."""
        return self._task is not None and not self._task.done()

    @property
    def n_failed_batches(self) -> int:
        """Number of batches in a row without one score, where it means that the scorer fails; otherwise 0.

        It does from `FAILING_AFTER` on, until a row is scored, or until no batch was tried for a while.
        """
        is_fresh = self._clock.now() < self._failed_at + _FAILING_FOR_S
        return self._n_failed_in_a_row if self._n_failed_in_a_row >= FAILING_AFTER and is_fresh else 0

    @property
    def scorer_state(self) -> ScorerState:
        """Whether forwards end in time. While they do not, every request is refused."""
        return self._state

    def start(self) -> None:
        """Start the batching task, and the watchdog if there is one."""
        self._task = asyncio.create_task(self._run(), name="batcher")
        if self._watchdog is not None:
            self._watchdog_task = asyncio.create_task(
                self._poll_scorer(self._watchdog.poll_interval_s), name="watchdog"
            )

    async def stop(self) -> None:
        """Accept no new rows, finish the accepted ones, then end. Cancelling this refuses the rest.

        A forward that hangs is not waited for.
        """
        self._closed = True
        self._changed.set()
        self._cancel_if_hanging()
        try:
            if self._task is not None:
                await asyncio.gather(self._task, return_exceptions=True)
        finally:
            if self._watchdog_task is not None:
                self._watchdog_task.cancel()
                await asyncio.gather(self._watchdog_task, return_exceptions=True)
            self._threads.shutdown(wait=False, cancel_futures=True)

    async def abort(self) -> None:
        """Accept no new rows and refuse all that are not finished, without waiting for a running forward."""
        if self._task is not None:
            self._task.cancel()
        await self.stop()

    @contextmanager
    def expecting(self, n_rows: int) -> Iterator[None]:
        """Announce `n_rows` rows while the body runs: the next batch waits for them, as long as the linger allows."""
        self._n_expected += n_rows
        try:
            yield
        finally:
            self._n_expected -= n_rows
            self._changed.set()

    async def score(
        self, rows: Sequence[tuple[int, ...]], deadline: float = math.inf, *, use_cache: bool = True
    ) -> list[RowOutcome]:
        """One outcome a row, in order. Raise `DeadlineExceeded`, `ShuttingDown`, `ScorerHanging` or `BatcherStopped` for all.

        `use_cache` False: score every row now, also one whose score is cached.
        """
        if self._closed:
            raise ShuttingDown("this server is shutting down; send the request to another one", retry_after_s=1.0)
        if not self.is_alive:
            raise BatcherStopped("the batching task has stopped. This is a bug in the server.")
        if self._state != "healthy":
            raise scorer_hanging_error()
        request = self._queue.submit(rows, self._clock.now(), deadline, use_cache)
        try:
            if request.n_unresolved:
                self._changed.set()
                await request.resolved
        finally:
            self._queue.remove(request)
        return request.outcomes

    # -- the task -------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        end: ServiceError = ShuttingDown("this server has shut down before the request was scored")
        cause: BaseException | None = None
        try:
            while not self._closed or self._queue or self._in_flight:
                await self._dispatch_or_wait()
                self._collect_finished()
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            end = BatcherStopped(f"the batching task ended with {type(error).__name__}. This is a bug in the server.")
            cause = error
        finally:
            unfinished = [row for rows in self._in_flight.values() for row in rows]
            for task in self._in_flight:
                task.cancel()
            await asyncio.gather(*self._in_flight, return_exceptions=True)
            self._in_flight.clear()
            self._queue.reject_all(end)
        if cause is not None:
            self._events.on_batch(self._result("bug", unfinished, self._clock.now(), error=cause))

    async def _dispatch_or_wait(self) -> None:
        """Dispatch one batch, or wait until there is a reason to plan again."""
        if len(self._in_flight) == self._scorer.concurrency:
            await asyncio.wait(self._in_flight, return_when=asyncio.FIRST_COMPLETED)
            return
        self._changed.clear()
        now = self._clock.now()
        for request in self._queue.expired(now):
            self._queue.reject(request, DeadlineExceeded("the deadline passed in the queue"))
        todo = plan(
            self._queue.entries,
            self._limits_of_next_batch(),
            now,
            pads_rows=self._scorer.pads_rows,
            shares_prefixes=self._scorer.shares_prefixes,
            n_expected=self._n_expected,
            busy=bool(self._in_flight) and not self._scorer.streams,
        )
        if todo.batch:
            rows = self._queue.dispatch(todo.batch)
            task = asyncio.create_task(self._run_batch(rows), name="batch")
            task.add_done_callback(lambda _: self._changed.set())
            self._in_flight[task] = rows
        else:
            times = [at for at in (todo.replan_at, self._queue.next_deadline()) if at is not None]
            await self._clock.wait(self._changed, min(times, default=None))

    def _collect_finished(self) -> None:
        for task in [task for task in self._in_flight if task.done()]:
            del self._in_flight[task]
            task.result()  # a bug in the batcher ends the batching task

    def _limits_of_next_batch(self) -> BatchLimits:
        """The current limits, with a smaller target where the fit of seconds to tokens needs a small batch."""
        if self._batch_size is None:
            return self._limits
        return replace(self.limits, target_tokens=self._batch_size.next_budget)

    # -- one batch ------------------------------------------------------------------------------------------

    async def _run_batch(self, rows: Sequence[PendingRow]) -> None:
        """Score a batch; halve one that fails, until a single row fails or the batch has failed too often."""
        any_score = False
        groups = [rows]
        failures_left = _EXTRA_FAILURES + 2 * len(rows).bit_length()
        while groups:
            group = groups.pop()
            started_at = self._clock.now()
            scores = await self._forward(group)
            now = self._clock.now()
            # Where the scorer had an earlier forward to finish, the time of that one does not count.
            forward_s = now - (started_at if self._scorer.streams else max(started_at, self._freed_at))
            self._freed_at = now
            if isinstance(scores, BatchScores) and len(scores.rows) == len(group):
                any_score |= self._complete_rows(group, scores, started_at, forward_s)
                continue
            error = scores if isinstance(scores, BaseException) else score_count_error(len(scores.rows), len(group))
            failures_left -= 1
            if isinstance(error, OutOfMemory):
                self._lower_max_tokens(group)
            self._events.on_batch(self._result(batch_outcome(error), group, started_at, forward_s, error=error))
            if len(group) == 1 or failures_left <= 0 or isinstance(error, ScorerBug):
                failure = row_error(error, [row.n_tokens for row in group])
                for row in group:
                    self._queue.fail(row, failure)
            else:
                middle = len(group) // 2
                groups += [group[middle:], group[:middle]]
        self._n_failed_in_a_row = 0 if any_score else self._n_failed_in_a_row + 1
        if not any_score:
            self._failed_at = self._clock.now()

    async def _forward(self, group: Sequence[PendingRow]) -> BatchScores | BaseException:
        """The scores from the scorer's thread, or the exception that it raised."""
        batch = TokenBatch(tuple([row.ids for row in group]))

        def score() -> BatchScores | BaseException:
            # Returned, not raised: a future cannot carry every exception (a StopIteration would never arrive).
            try:
                return self._scorer.score(batch)
            except BaseException as error:
                return error

        with self._tracked_forward():
            return await asyncio.get_running_loop().run_in_executor(self._threads, score)

    # -- hanging forwards -------------------------------------------------------------------------------------

    async def _poll_scorer(self, every_s: float) -> None:
        never = asyncio.Event()
        while True:
            await self._clock.wait(never, self._clock.now() + every_s)
            self._check_scorer()

    @contextmanager
    def _tracked_forward(self) -> Iterator[None]:
        """Register a forward with the watchdog while the body runs."""
        forward = object()
        self._forward_started_at[forward] = self._check_scorer()
        try:
            yield
        finally:
            del self._forward_started_at[forward]
            self._check_scorer()

    def _check_scorer(self) -> float:
        """Update the state of the scorer; when it begins to hang, refuse all requests. Return the watchdog's time."""
        if self._watchdog is None:
            return 0.0
        self._watchdog = self._watchdog.observed_at(self._clock.now())
        state = self._watchdog.state(self._forward_started_at.values(), self._scorer.concurrency)
        if state != self._state:
            self._state = state
            self._events.on_scorer_state(state)
            if state == "hanging":
                self._queue.reject_requests(scorer_hanging_error())
                self._cancel_if_hanging()
        return self._watchdog.observed_s

    def _cancel_if_hanging(self) -> None:
        if self._closed and self._state != "healthy" and self._task is not None:
            self._task.cancel()

    def _complete_rows(
        self, group: Sequence[PendingRow], scores: BatchScores, started_at: float, forward_s: float
    ) -> bool:
        """Complete every row of a finished forward with its scores. Return whether any row has some."""
        n_taken = scores.tokens_computed + scores.tokens_padding
        if self._batch_size is not None and n_taken > 0:
            self._batch_size = self._batch_size.after(n_taken, forward_s)
        done = self._result("ok", group, started_at, forward_s, scores)
        a_token = scores.tokens_computed / done.n_row_tokens
        any_score = False
        for row, heads in zip(group, scores.rows, strict=True):
            if (error := score_error(heads)) is not None:
                self._queue.fail(row, error)
            else:
                any_score = True
                self._queue.complete(row, heads, started_at, forward_s, a_token * row.n_tokens)
        self._events.on_batch(done)
        return any_score

    def _lower_max_tokens(self, group: Sequence[PendingRow]) -> None:
        """Lower the bound of the budget after out of memory. A single row says nothing about the budget of several."""
        if len(group) > 1:
            lengths = added_lengths(group, self._scorer.shares_prefixes)
            half = max(1, batch_cost(lengths, self._scorer.pads_rows) // 2)
            self._limits = replace(self._limits, max_tokens=min(half, self._limits.max_tokens))

    def _result(
        self,
        outcome: BatchOutcome,
        group: Sequence[PendingRow],
        started_at: float,
        forward_s: float = 0.0,
        scores: BatchScores | None = None,
        error: BaseException | None = None,
    ) -> BatchResult:
        waiters = [row.all_waiters for row in group]
        queue_s = [started_at - request.arrived_at for waiters in waiters for request, _ in waiters]
        return BatchResult(
            outcome=outcome,
            n_rows=len(group),
            n_row_tokens=sum([row.n_tokens for row in group]),
            n_tokens=sum([row.n_tokens * len(waiters) for row, waiters in zip(group, waiters, strict=True)]),
            n_computed=scores.tokens_computed if scores else 0,
            n_padding=scores.tokens_padding if scores else 0,
            forward_s=forward_s,
            queue_s=tuple([seconds if seconds > 0.0 else 0.0 for seconds in queue_s]),
            budget=self.limits.target,
            error=error,
        )


def scorer_hanging_error() -> ScorerHanging:
    """The error of all requests while a forward hangs."""
    return ScorerHanging(
        "a forward has been under way for longer than REWARD_SCORER_TIMEOUT_S; nothing is scored until it comes back",
        retry_after_s=5.0,
    )

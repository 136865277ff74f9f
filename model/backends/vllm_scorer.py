"""Scorer over an engine with continuous batching: rows are submitted as they arrive, and return as they finish.

The engine runs on an event loop on a separate thread. A caller submits all rows of its batch at once and waits on its own
thread, with an end: its rows return, or the engine dies, or no row of any batch has returned for so long that the engine
counts as dead. Knows `vllm_api.VllmEngine`; does not know vLLM.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import threading
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import Future
from typing import Any, TypeVar

from rewardserve.model.backends.vllm_api import PooledRow, VllmEngine, scorer_error
from rewardserve.model.scorer import BatchScores, ScorerError, TokenBatch

T = TypeVar("T")

IN_FLIGHT = 8
"""Batches at a time. With the token budget of its device, the engine then has a few forwards queued and is never idle, and
rows that wait in the server can still be rejected or batched with their prefix group."""

_LOST_AFTER = 4.0
"""Multiple of the stall timeout after which a batch is aborted although others return."""

_LONGEST_SHUTDOWN_S = 30.0


class EventLoopThread:
    """Event loop on a separate thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="vllm", daemon=True)
        self._thread.start()

    def submit(self, work: Coroutine[Any, Any, T]) -> Future[T]:
        """Run a coroutine on the loop and return its future. Raise `ScorerError` after `close`."""
        try:
            return asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError as error:
            work.close()
            raise ScorerError("the engine has been shut down") from error

    def close(self) -> None:
        """Cancel all tasks, so that every future is resolved, and end the thread."""
        with contextlib.suppress(TimeoutError):
            self.submit(_cancel_the_others()).result(_LONGEST_SHUTDOWN_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_LONGEST_SHUTDOWN_S)
        if not self._thread.is_alive():
            self._loop.close()


class VllmScorer:
    """Score rows with a running engine. `biases` are added to the labels, which have the names of heads."""

    concurrency = IN_FLIGHT
    pads_rows = False
    streams = True  # the engine batches continuously

    def __init__(
        self,
        engine: VllmEngine,
        loop: EventLoopThread,
        names: Sequence[str],
        biases: Sequence[float],
        *,
        max_tokens: int,
        shares: bool,
        stall_timeout_s: float,
        clock: Callable[[], float] = time.monotonic,
        after: Callable[[], None] = lambda: None,
    ) -> None:
        self._engine, self._loop, self._after = engine, loop, after
        self._names, self._biases = tuple(names), tuple(biases)
        self._max_tokens, self._shares = max_tokens, shares
        self._stall_timeout_s, self._clock = stall_timeout_s, clock
        self._last_result_at = clock()
        self._is_stuck = self._is_closed = False
        self._numbers = itertools.count()

    @property
    def max_tokens(self) -> int:
        """The longest row."""
        return self._max_tokens

    @property
    def shares_prefixes(self) -> bool:
        """Whether the engine caches prefixes: rows of a prefix group that arrive together reuse them."""
        return self._shares

    @property
    def is_alive(self) -> bool:
        """Whether the engine's processes run and return results."""
        return not (self._is_stuck or self._is_closed or self._engine.is_dead)

    def score(self, batch: TokenBatch) -> BatchScores:
        """Score every row, in order. Raise `OutOfMemory` or `ScorerError`."""
        if not self.is_alive:
            raise ScorerError("vLLM's engine is dead")
        pooled = self._wait(self._loop.submit(self._pool(batch.rows)))
        return BatchScores(
            tuple(map(self._heads, pooled)),
            tokens_computed=sum(len(row) - output.n_cached for row, output in zip(batch.rows, pooled, strict=True)),
        )

    def close(self) -> None:
        """End the engine and its processes; rows in flight fail."""
        if self._is_closed:
            return
        self._is_closed = True
        # Errors of vLLM's shutdown are ignored: `after` ends its processes.
        with contextlib.suppress(Exception):
            self._loop.submit(_shut(self._engine)).result(_LONGEST_SHUTDOWN_S)
        self._loop.close()
        self._after()

    def _heads(self, pooled: PooledRow) -> dict[str, float]:
        if len(pooled.values) != len(self._names):
            raise ScorerError(f"vLLM gave {len(pooled.values)} values for the {len(self._names)} heads of a row")
        return {name: v + bias for name, v, bias in zip(self._names, pooled.values, self._biases, strict=True)}

    # -- on the engine's loop -------------------------------------------------------------------------------

    async def _pool(self, rows: Sequence[tuple[int, ...]]) -> list[PooledRow]:
        """Submit all rows at once. If one fails, the others are aborted."""
        tasks = [asyncio.create_task(self._one(row)) for row in rows]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _one(self, row: tuple[int, ...]) -> PooledRow:
        pooled = await self._engine.pool(row, f"row-{next(self._numbers)}")
        self._last_result_at = self._clock()
        return pooled

    # -- on the caller's thread -----------------------------------------------------------------------------

    def _wait(self, coming: Future[list[PooledRow]]) -> list[PooledRow]:
        began = self._clock()
        while True:
            now = self._clock()
            stuck_at = max(began, self._last_result_at) + self._stall_timeout_s
            lost_at = began + _LOST_AFTER * self._stall_timeout_s
            if now >= min(stuck_at, lost_at):
                coming.cancel()
                self._is_stuck |= now >= stuck_at
                raise ScorerError(
                    f"vLLM has not answered for {now - began:.0f} s (vllm.stall_timeout_s={self._stall_timeout_s:g})"
                    + (" and counts as dead" if self._is_stuck else "")
                )
            try:
                return coming.result(min(stuck_at, lost_at) - now)
            except Exception as error:
                if coming.done():
                    raise scorer_error(error) from error


async def _shut(engine: VllmEngine) -> None:
    engine.shutdown()


async def _cancel_the_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)

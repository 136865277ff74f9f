"""A manual clock, and scorers with faults."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace

from rewardserve.model.backends.echo import echo_score
from rewardserve.model.scorer import BatchScores, OutOfMemory, ScorerError, TokenBatch

PATIENCE_S = 10.0


class StillClock:
    """Clock that a test advances. `waiting` counts the tasks that wait for it."""

    def __init__(self, at: float = 1000.0) -> None:
        self._now = at
        self._alarms: list[tuple[float, asyncio.Event]] = []

    def now(self) -> float:
        return self._now

    def unix_time(self) -> float:
        return 1_800_000_000.0 + self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds
        for until, alert in self._alarms:
            if until <= self._now:
                alert.set()

    async def wait(self, event: asyncio.Event, until: float | None) -> None:
        if event.is_set() or (until is not None and until <= self._now):
            return
        alert = asyncio.Event()
        entry = (float("inf") if until is None else until, alert)
        self._alarms.append(entry)
        waits = [asyncio.ensure_future(event.wait()), asyncio.ensure_future(alert.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._alarms.remove(entry)
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)


class TripwireLog:
    """Records the events of trip wires: alerts as (run, alert), failures as their reasons."""

    def __init__(self):
        self.alerts, self.skipped, self.failures = [], [], []
        self.lost, self.delayed = [], []
        self.refused, self.restored, self.unnamed = [], [], []

    def on_alert(self, run, alert):
        self.alerts.append((run, alert))

    def on_alert_lost(self, message, reason):
        self.lost.append((message["wire"], reason))

    def on_alert_delayed(self, reason, n_waiting):
        self.delayed.append((reason, n_waiting))

    def on_audit_skipped(self, n_samples):
        self.skipped.append(n_samples)

    def on_queue_failure(self, reason):
        self.failures.append(reason)

    on_attribution_failure = on_evidence_failure = on_state_failure = on_queue_failure

    def on_unnamed_run(self, run, client):
        self.unnamed.append((run, client))

    def on_state_refused(self, run, reason):
        self.refused.append((run, reason))

    def on_state_restored(self, n_runs, age_s):
        self.restored.append((n_runs, age_s))


class Untrue:
    """A flag that raises where it is read."""

    def __bool__(self):
        raise ZeroDivisionError


class FakeScorer:
    """Scores like echo, records its batches, and has the cost of a padded batch."""

    max_tokens = 1_000_000
    concurrency = 1
    pads_rows = True
    streams = False
    is_alive = True

    def __init__(self, behave: Callable[[TokenBatch], BatchScores] | None = None) -> None:
        self.batches: list[TokenBatch] = []
        self._behave = behave or right_scores

    def score(self, batch: TokenBatch) -> BatchScores:
        self.batches.append(batch)
        return self._behave(batch)

    @property
    def shares_prefixes(self) -> bool:
        return False

    def close(self) -> None:
        """Do nothing."""


class GatedScorer(FakeScorer):
    """Blocks in the forward until the gate is opened."""

    def __init__(self, behave: Callable[[TokenBatch], BatchScores] | None = None) -> None:
        super().__init__(behave)
        self.gate = threading.Event()
        self._inside = threading.Semaphore(0)

    def score(self, batch: TokenBatch) -> BatchScores:
        self._inside.release()
        assert self.gate.wait(PATIENCE_S), "the gate was not opened"
        return super().score(batch)

    async def entered(self) -> None:
        """Return when one more forward has begun."""
        assert await asyncio.to_thread(self._inside.acquire, timeout=PATIENCE_S), "no forward began"


def right_scores(batch: TokenBatch) -> BatchScores:
    rows = tuple({"score": echo_score(row)} for row in batch.rows)
    return BatchScores(rows, tokens_computed=batch.n_tokens, tokens_padding=0)


class SharingScorer(FakeScorer):
    """Computes common prefixes of rows once."""

    def score(self, batch: TokenBatch) -> BatchScores:
        return replace(super().score(batch), tokens_computed=n_distinct_beginnings(batch.rows))

    pads_rows = False

    @property
    def shares_prefixes(self) -> bool:
        return True


def n_distinct_beginnings(rows: Sequence[tuple[int, ...]]) -> int:
    """The nodes of the tree of all prefixes: the tokens that are computed if none is computed twice."""
    root, n = {}, 0
    for row in rows:
        node = root
        for token in row:
            n += token not in node
            node = node.setdefault(token, {})
    return n


def one_too_few(batch: TokenBatch) -> BatchScores:
    return BatchScores(right_scores(batch).rows[1:], batch.n_tokens)


def scores_with(value: float, where: Callable[[tuple[int, ...]], bool]) -> Callable[[TokenBatch], BatchScores]:
    """Right scores except for the chosen rows."""

    def behave(batch: TokenBatch) -> BatchScores:
        rows = tuple({"score": value if where(r) else echo_score(r)} for r in batch.rows)
        return BatchScores(rows, batch.n_tokens)

    return behave


def no_memory_above(n_rows: int) -> Callable[[TokenBatch], BatchScores]:
    def behave(batch: TokenBatch) -> BatchScores:
        if len(batch) > n_rows:
            raise OutOfMemory("too many rows")
        return right_scores(batch)

    return behave


def poisoned_by(
    where: Callable[[tuple[int, ...]], bool], error: BaseException | None = None
) -> Callable[[TokenBatch], BatchScores]:
    """Raises whenever a chosen row is in the batch."""

    def behave(batch: TokenBatch) -> BatchScores:
        if any(where(row) for row in batch.rows):
            raise error or ScorerError("device-side assert")
        return right_scores(batch)

    return behave


class HttpLog:
    """Keeps the records of answered requests."""

    def __init__(self, records=None):
        self.records = [] if records is None else records

    def on_request(self, record):
        self.records.append(record)

    def on_rejected(self, path, status):
        pass

    def on_connection_end(self, reason):
        pass


class InferenceLog:
    """Calls the given function of an event, and ignores all other events."""

    def __init__(self, on_batch=None, on_scorer_state=None, on_encode_bug=None):
        self.on_batch, self.on_scorer_state, self.on_encode_bug = (
            given or (lambda _: None) for given in (on_batch, on_scorer_state, on_encode_bug)
        )

"""Write captured records to the review store on one thread, from a bounded queue: scoring never waits for a disk or a database.

Records beyond the bound are dropped and counted. Where the store fails, the thread tries again with growing pauses, and keeps its
records; one that the store refuses for its content is dropped alone.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from time import monotonic
from typing import NamedTuple, Protocol

from rewardserve.service.clock import Clock
from rewardserve.service.review.agreement import Agreement
from rewardserve.service.review.errors import RecordRefused, ReviewStoreError
from rewardserve.service.review.pairing import Sampling
from rewardserve.service.review.records import (
    AlertRecord,
    LabelledPair,
    QueuePage,
    RunCounts,
    SampleFilter,
    SampleRecord,
    StoredAlert,
    StoredSample,
    Verdict,
)

MAX_WAITING = 4_096
MAX_WAITING_CHARS = 64 * 2**20
"""Records, and characters of their texts, that wait; those beyond are dropped."""

_BATCH = 256
"""Records of one transaction."""

_LINGER_S = 0.2
"""Longest wait for more records, so that few transactions write many."""

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0
_EXPIRE_EVERY_S = 600.0
_STOP_S = 5.0
"""Seconds in which the records that wait must be written at the end."""

Record = SampleRecord | AlertRecord


class Retention(NamedTuple):
    """What stays in the store: samples of at most `max_age_s`, and the latest of at most `max_bytes`."""

    max_age_s: float
    max_bytes: int


class Store(Protocol):
    """The methods of `ReviewStore`, whose libraries are imported where there is one. All raise `ReviewStoreError`."""

    @property
    def name(self) -> str:
        """Where the store is, without its password."""
        ...

    @property
    def labels(self) -> LabelStore:
        """Pairs and their labels."""
        ...

    def upgrade(self) -> None:
        """Migrate the schema to the newest revision."""
        ...

    def add(self, new: Sequence[SampleRecord], raised: Sequence[AlertRecord]) -> int:
        """Add records; return the number of samples that are new."""
        ...

    def expire(self, oldest_at: float, max_bytes: int) -> int:
        """Delete old records; return the number of samples."""
        ...

    def delete_run(self, run: str) -> RunCounts | None:
        """Delete a run; return what it had."""
        ...

    def delete_sample(self, sample_id: int) -> bool:
        """Delete a sample; return whether there was one."""
        ...

    def runs(self, limit: int) -> list[RunCounts]:
        """Runs, that with the latest record first."""
        ...

    def samples(self, wanted: SampleFilter, limit: int, before: int | None) -> list[StoredSample]:
        """Samples, the latest first."""
        ...

    def sample(self, sample_id: int) -> SampleRecord | None:
        """One sample."""
        ...

    def alerts(self, run: str, limit: int) -> list[StoredAlert]:
        """Alerts of a run, the latest first."""
        ...

    def export(self, wanted: SampleFilter) -> Iterator[SampleRecord]:
        """All samples, the oldest first."""
        ...

    def close(self) -> None:
        """Close all connections."""
        ...


class LabelStore(Protocol):
    """The methods of `labels.Labels`. All raise `ReviewStoreError`."""

    def queue(self, run: str, annotator: str, sampling: Sampling, limit: int, at: float) -> QueuePage:
        """The next pairs of a run for an annotator."""
        ...

    def alert_pairs(self, run: str, limit: int) -> list[tuple[StoredSample, StoredSample]]:
        """Early responses beside those that an alert points at."""
        ...

    def run_of(self, pair_id: str) -> str | None:
        """The run of a pair."""
        ...

    def add(self, pair_id: str, annotator: str, verdict: Verdict, at: float) -> int | None:
        """Store a verdict; return its number."""
        ...

    def remove(self, label_id: int, annotator: str) -> bool:
        """Delete a label of this annotator."""
        ...

    def labelled(self, run: str | None) -> Iterator[LabelledPair]:
        """Labelled pairs."""
        ...

    def agreement(self, run: str | None) -> Agreement:
        """How far annotators agree."""
        ...


class CaptureEvents(Protocol):
    """Receiver of events of the writer, for log and metrics. Called on its thread, and on the event loop."""

    def on_captured(self, n_stored: int, n_known: int) -> None:
        """So many samples are new in the store, and so many were in it."""
        ...

    def on_capture_dropped(self, n: int) -> None:
        """So many records are lost."""
        ...

    def on_capture_failure(self, reason: str) -> None:
        """The first failure of several."""
        ...

    def on_capture_recovered(self, n_dropped: int) -> None:
        """The store works again; so many records were lost meanwhile."""
        ...


class CaptureWriter:
    """Writer of one process. `add` belongs to one event loop."""

    def __init__(self, store: Store, retention: Retention, clock: Clock, events: CaptureEvents) -> None:
        self._store = store
        self._retention = retention
        self._clock = clock
        self._events = events
        self._waiting: deque[Record] = deque()
        self._n_chars = 0
        self._changed = threading.Condition()
        self._writing = threading.Lock()
        self._ends_at: float | None = None
        self._n_dropped = 0
        self._has_failed = False
        self._pause_s = 0.0
        self._expire_at = 0.0
        self._is_migrated = False
        self._thread = threading.Thread(target=self._run, name="review store", daemon=True)

    def start(self) -> None:
        """Begin to write."""
        self._thread.start()

    def add(self, records: Iterable[Record]) -> None:
        """Queue records to be written. Never waits for the store; drops records beyond the bound."""
        n_dropped = 0
        with self._changed:
            for record in records:
                n = _n_chars(record)
                if (
                    len(self._waiting) >= MAX_WAITING
                    or self._n_chars + n > MAX_WAITING_CHARS
                    or self._ends_at is not None
                ):
                    n_dropped += 1
                    continue
                self._waiting.append(record)
                self._n_chars += n
            self._changed.notify()
        if n_dropped:
            self._dropped(n_dropped)

    def delete_run(self, run: str) -> RunCounts | None:
        """Delete a run from the store, and what waits of it. Blocks. Raise `ReviewStoreError`."""
        with self._writing:
            with self._changed:
                kept = [each for each in self._waiting if each.run != run]
                self._n_chars -= sum(_n_chars(each) for each in self._waiting if each.run == run)
                self._waiting = deque(kept)
            return self._store.delete_run(run)

    def stop(self) -> None:
        """Write what waits, for at most `_STOP_S`, and close the store. Blocks. Records that are left then are dropped."""
        with self._changed:
            self._ends_at = monotonic() + _STOP_S
            self._changed.notify()
        self._thread.join(_STOP_S + 1.0)
        with self._changed:
            n, self._n_chars = len(self._waiting), 0
            self._waiting.clear()
        if n:
            self._dropped(n)
        self._store.close()

    # -- the thread -------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._wait():
            with self._writing:
                batch = self._next()
                try:
                    self._write(batch)
                except ReviewStoreError as error:
                    self._failed(str(error))
                    continue
                except Exception as error:  # a bug; the thread must go on
                    self._dropped(len(batch))
                    self._failed(type(error).__name__)
                self._remove(len(batch))

    def _wait(self) -> bool:
        """Wait for records, or until the store is to be tidied, after a pause where it has failed. False: the end has come."""
        with self._changed:
            if self._pause_s and self._changed.wait_for(lambda: self._ends_at is not None, self._pause_s):
                self._changed.wait(_LINGER_S)  # the end does not wait for the pause, nor try without one
            self._changed.wait_for(
                lambda: bool(self._waiting) or self._ends_at is not None, max(0.0, self._expire_at - monotonic())
            )
            if self._waiting:
                self._changed.wait_for(lambda: len(self._waiting) >= _BATCH or self._ends_at is not None, _LINGER_S)
            return self._ends_at is None or (bool(self._waiting) and monotonic() < self._ends_at)

    def _next(self) -> list[Record]:
        """The next records, which stay in the queue until they are written."""
        with self._changed:
            return list(islice(self._waiting, _BATCH))

    def _remove(self, n: int) -> None:
        with self._changed:
            for _ in range(min(n, len(self._waiting))):  # fewer where the end came meanwhile
                self._n_chars -= _n_chars(self._waiting.popleft())

    def _write(self, batch: Sequence[Record]) -> None:
        if not self._is_migrated:
            self._store.upgrade()
            self._is_migrated = True
        if batch:
            self._add(batch)
        if self._has_failed:
            self._events.on_capture_recovered(self._n_dropped)
        self._has_failed, self._pause_s, self._n_dropped = False, 0.0, 0
        if monotonic() >= self._expire_at and self._ends_at is None:
            self._expire_at = monotonic() + _EXPIRE_EVERY_S
            self._store.expire(self._clock.unix_time() - self._retention.max_age_s, self._retention.max_bytes)

    def _add(self, batch: Sequence[Record]) -> None:
        """Add records, and where the store refuses them, each alone."""
        samples = [each for each in batch if isinstance(each, SampleRecord)]
        try:
            n = self._store.add(samples, [each for each in batch if isinstance(each, AlertRecord)])
        except RecordRefused as error:
            if len(batch) == 1:
                self._dropped(1)
                self._events.on_capture_failure(str(error))
                return
            for each in batch:
                self._add([each])
            return
        self._events.on_captured(n, len(samples) - n)

    def _failed(self, reason: str) -> None:
        """Pause before the next attempt, and report the first failure of several."""
        self._pause_s = min(_LONGEST_PAUSE_S, max(_FIRST_PAUSE_S, 2.0 * self._pause_s))
        if not self._has_failed:
            self._has_failed = True
            self._events.on_capture_failure(reason)

    def _dropped(self, n: int) -> None:
        self._n_dropped += n
        self._events.on_capture_dropped(n)


def _n_chars(record: Record) -> int:
    """Characters of the texts of a record."""
    if isinstance(record, AlertRecord):
        return 0
    prompt = record.prompt
    return len(record.response) + (
        len(prompt) if isinstance(prompt, str) else sum(len(turn.content) for turn in prompt)
    )

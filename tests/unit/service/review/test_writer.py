"""The writer of captured records: it never blocks scoring, loses nothing while the store is away, and counts what it drops."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable

import pytest

from rewardserve.service.clock import MonotonicClock
from rewardserve.service.review import writer as module
from rewardserve.service.review.errors import RecordRefused, ReviewStoreError
from rewardserve.service.review.records import SampleFilter
from rewardserve.service.review.store import ReviewStore
from rewardserve.service.review.writer import CaptureWriter, Retention
from tests.unit.service.review.test_store import alert, sample

FOREVER = Retention(1e12, 2**50)


class Events:
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.stored = self.known = self.dropped = 0
        self.log: list[str] = []

    def on_captured(self, n_stored: int, n_known: int) -> None:
        self.stored += n_stored
        self.known += n_known

    def on_capture_dropped(self, n: int) -> None:
        self.dropped += n

    def on_capture_failure(self, reason: str) -> None:
        self.log.append(reason)

    def on_capture_recovered(self, n_dropped: int) -> None:
        self.log.append(f"recovered, {n_dropped} lost")


class Broken(ReviewStore):
    """A store whose `add` fails as often as `failures` says, and refuses responses that say so."""

    failures = 0
    error: Exception = ReviewStoreError("the disk is full")
    gate: threading.Event | None = None

    def add(self, new, raised=()):
        if self.gate is not None:
            self.gate.wait(20.0)
        if self.failures > 0:
            self.failures -= 1
            raise self.error
        if any("poison" in each.response for each in new):
            raise RecordRefused("not this one")
        return super().add(new, raised)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(module, "_LINGER_S", 0.001)
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(module, "_LONGEST_PAUSE_S", 0.02)


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20.0
    while not condition():
        assert time.monotonic() < until, "it never came true"
        time.sleep(0.002)


@pytest.fixture
def events():
    return Events()


@pytest.fixture
def broken(database):
    return Broken(database)


def writer_of(store, events, retention=FOREVER):
    writer = CaptureWriter(store, retention, MonotonicClock(), events)
    writer.start()
    return writer


def read(database):
    store = ReviewStore.open(database)
    found = [each.response for each in store.export()]
    store.close()
    return found


def test_what_is_added_is_stored_when_it_stops(database, events):
    writer = writer_of(ReviewStore(database), events)
    for n in range(0, 1_000, 10):
        writer.add([sample(each) for each in range(n, n + 10)])
    writer.add([sample(3), alert()])
    writer.stop()
    assert read(database) == [f"response {n}" for n in range(1_000)]
    assert (events.stored, events.known, events.dropped, events.log) == (1_000, 1, 0, [])


def test_nothing_is_lost_while_the_store_fails(database, broken, events):
    broken.failures = 5
    writer = writer_of(broken, events)
    for n in range(100):
        writer.add([sample(n)])
    wait_until(lambda: events.stored == 100)
    writer.stop()
    assert read(database) == [f"response {n}" for n in range(100)]
    assert events.log == ["the disk is full", "recovered, 0 lost"]


def test_a_store_that_cannot_be_opened_yet_is_opened_later(tmp_path, events):
    folder = tmp_path / "later"
    writer = writer_of(ReviewStore(folder / "review.db"), events)
    writer.add([sample(1)])
    wait_until(lambda: bool(events.log))
    assert "unable to open database file" in events.log[0]
    folder.mkdir()
    wait_until(lambda: events.stored == 1)
    writer.stop()


def test_a_record_that_is_refused_is_dropped_alone(database, broken, events):
    writer = writer_of(broken, events)
    writer.add([sample(n, response="poison" if n == 5 else f"response {n}") for n in range(10)] + [alert()])
    wait_until(lambda: events.stored == 9)
    writer.stop()
    assert read(database) == [f"response {n}" for n in range(10) if n != 5]
    assert events.dropped == 1


def test_a_bug_of_the_store_drops_its_batch_and_the_thread_goes_on(database, broken, events):
    broken.failures, broken.error = 1, KeyError("secret text")
    writer = writer_of(broken, events)
    writer.add([sample(1)])
    wait_until(lambda: events.dropped == 1)
    writer.add([sample(2)])
    wait_until(lambda: events.stored == 1)
    writer.stop()
    assert events.log[0] == "KeyError"


def test_records_beyond_the_bound_are_dropped_and_counted(database, broken, events, monkeypatch):
    monkeypatch.setattr(module, "MAX_WAITING", 50)
    broken.gate = threading.Event()
    writer = writer_of(broken, events)
    began = time.monotonic()
    writer.add([sample(n) for n in range(500)])
    writer.add([sample(n) for n in range(500, 600)])
    assert time.monotonic() - began < 2.0, "adding waited for the store"
    assert events.dropped == 550
    broken.gate.set()
    writer.stop()
    assert read(database) == [f"response {n}" for n in range(50)]


def test_texts_beyond_the_bound_are_dropped(broken, events, monkeypatch):
    monkeypatch.setattr(module, "MAX_WAITING_CHARS", 1_000)
    broken.gate = threading.Event()
    writer = writer_of(broken, events)
    writer.add([sample(n, response="x" * 400) for n in range(4)] + [sample(9, response="y" * 2_000)])
    assert events.dropped == 3
    broken.gate.set()
    wait_until(lambda: events.stored == 2)
    writer.add([sample(n, response="x" * 400) for n in range(10, 12)])
    wait_until(lambda: events.stored == 4)
    writer.stop()


def test_a_locked_file_delays_and_does_not_lose(tmp_path, events):
    path = tmp_path / "review.db"
    ReviewStore.open(path).close()
    with sqlite3.connect(path, isolation_level=None) as locking:
        locking.execute("BEGIN IMMEDIATE")
        store = ReviewStore(path)
        writer = writer_of(store, events)
        writer.add([sample(1)])
        time.sleep(0.1)
        assert events.stored == 0
        locking.execute("ROLLBACK")
    locking.close()
    wait_until(lambda: events.stored == 1)
    writer.stop()


def test_stopping_ends_although_the_store_is_dead(broken, events, monkeypatch):
    monkeypatch.setattr(module, "_STOP_S", 0.3)
    broken.failures = 10**9
    writer = writer_of(broken, events)
    writer.add([sample(n) for n in range(7)])
    began = time.monotonic()
    writer.stop()
    assert time.monotonic() - began < 5.0
    assert events.dropped == 7


def test_a_deleted_run_does_not_come_back_from_the_queue(database, broken, events):
    broken.failures = 3
    writer = writer_of(broken, events)
    writer.add([sample(1, run="gone"), sample(2, run="kept")])
    wait_until(lambda: broken.failures < 3)
    writer.delete_run("gone")
    wait_until(lambda: events.stored == 1)
    writer.stop()
    assert read(database) == ["response 2"]


def test_old_samples_are_deleted_at_the_start(database, events):
    store = ReviewStore.open(database)
    now = time.time()
    store.add([sample(n, at=now - 86_400.0 * n) for n in range(10)])
    writer = writer_of(store, events, Retention(4.5 * 86_400.0, 2**40))
    wait_until(lambda: len(store.samples(SampleFilter())) == 5)
    writer.stop()

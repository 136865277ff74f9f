"""Watched files are polled until the end, each on its thread, whatever a poll does."""

from __future__ import annotations

import threading

from rewardserve.service.storage.watched_files import watching

PATIENCE_S = 30.0


class File:
    """Polled every millisecond. `poll` calls `act` with the number of the poll."""

    interval_s = 0.001

    def __init__(self, name, act):
        self.name, self._act, self.n = name, act, 0

    def poll(self):
        self.n += 1
        self._act(self.n)


class Failures(list):
    def on_poll_failed(self, name, error):
        self.append((name, str(error)))


def test_a_file_that_hangs_holds_up_no_other_file_and_not_the_end():
    hangs, go_on, others = threading.Event(), threading.Event(), threading.Event()

    def hang(_):
        hangs.set()
        go_on.wait(PATIENCE_S)

    with watching([File("hanging", hang), File("other", lambda n: n > 3 and others.set())], Failures()):
        assert hangs.wait(PATIENCE_S)
        assert others.wait(PATIENCE_S)
    go_on.set()


def test_polling_goes_on_after_an_exception_which_is_reported_with_the_name():
    failures, again = Failures(), threading.Event()

    def fail_once(n):
        if n == 1:
            raise RuntimeError("can't start new thread")
        again.set()

    with watching([File("keys", fail_once)], failures):
        assert again.wait(PATIENCE_S)
    assert failures == [("keys", "can't start new thread")]


def test_nothing_is_polled_or_reported_after_the_end():
    failures, polled, go_on = Failures(), threading.Event(), threading.Event()

    def fail_late(_):
        polled.set()
        go_on.wait(PATIENCE_S)
        raise RuntimeError("the loop is closed")

    file = File("late", fail_late)
    with watching([file], failures):
        (thread,) = [each for each in threading.enumerate() if each.name == "late"]
        assert polled.wait(PATIENCE_S)
    go_on.set()
    thread.join(PATIENCE_S)
    assert (file.n, failures, thread.is_alive()) == (1, [], False)

"""Who is turned away: nobody who could have a seat, as far as anybody knows."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st
from starlette.responses import Response

from rewardserve.service.api.http.load_shedder import LoadShedder

ANSWER = Response("no", 503)


def door_of(seats):
    told = []
    return LoadShedder(frozenset({"/score"}), seats, SimpleNamespace(on_rejected=lambda *what: told.append(what))), told


def full():
    return SimpleNamespace(is_nearly_full=True, n_released=0)


def test_a_request_as_large_as_one_that_was_refused_is_refused_and_counted():
    load_shedder, told = door_of(full())
    assert load_shedder.rejection_for(b"/score", 100) is None, "nobody has been refused yet"
    load_shedder.on_overloaded(100, ANSWER)
    assert [load_shedder.rejection_for(b"/score", n) for n in (99, 100, 5000)] == [None, ANSWER, ANSWER]
    assert load_shedder.rejection_for(b"/v1/score", 5000) is None, "this one waits for its seats"
    assert told == [("/score", 503)] * 2


def test_as_soon_as_anybody_leaves_the_next_may_try():
    seats = full()
    load_shedder, _ = door_of(seats)
    load_shedder.on_overloaded(100, ANSWER)
    seats.n_released += 1
    assert load_shedder.rejection_for(b"/score", 100) is None
    assert load_shedder.rejection_for(b"/score", 100) is None
    load_shedder.on_overloaded(300, ANSWER)
    assert [load_shedder.rejection_for(b"/score", n) for n in (100, 300)] == [None, ANSWER], (
        "what was known before is forgotten"
    )


def test_one_request_that_was_too_large_sheds_no_load_while_capacity_is_left():
    seats = SimpleNamespace(is_nearly_full=False, n_released=0)
    load_shedder, _ = door_of(seats)
    load_shedder.on_overloaded(100, ANSWER)
    assert load_shedder.rejection_for(b"/score", 100) is None


@given(st.lists(st.tuples(st.sampled_from(["refused", "left", "asks"]), st.integers(0, 50))))
def test_it_is_the_smallest_since_the_last_one_left_that_counts(events):
    seats = full()
    load_shedder, _ = door_of(seats)
    refused = []
    for what, n in events:
        if what == "refused":
            load_shedder.on_overloaded(n, ANSWER)
            refused.append(n)
        elif what == "left":
            seats.n_released += 1
            refused.clear()
        else:
            assert (load_shedder.rejection_for(b"/score", n) is not None) == any(n >= size for size in refused)

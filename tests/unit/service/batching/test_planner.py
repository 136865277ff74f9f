"""Single plans that one can follow with a pencil."""

from __future__ import annotations

from service.batching.planner import Limits, Ticket, plan

NO_LINGER = Limits(max_tokens=100, linger_s=0.0)


def padded(lengths):
    return len(lengths) * max(lengths)


def room(*lengths, at=0.0):
    return [Ticket(i, n, at + i) for i, n in enumerate(lengths)]


def riding(p):
    return [t.ticket_id for t in p.batch]


def test_the_oldest_takes_those_along_that_are_nearest_to_it_in_length():
    p = plan(room(20, 90, 21, 19, 80, 20), NO_LINGER, padded, now=50.0)
    assert sorted(riding(p)) == [0, 3, 5] or sorted(riding(p)) == [0, 2, 3, 5]
    assert {t.ticket_id for t in p.waiting} >= {1, 4}


def test_a_ticket_that_exceeds_the_budget_rides_alone():
    p = plan(room(5_000, 10, 10), NO_LINGER, padded, now=50.0)
    assert riding(p) == [0]


def test_short_rows_do_not_ride_with_a_long_one_that_would_pad_them():
    p = plan(room(10, 10, 90), Limits(max_tokens=1_000, linger_s=0.0, max_padding=0.25), padded, now=50.0)
    assert sorted(riding(p)) == [0, 1]


def test_the_oldest_waits_for_company_that_is_coming_but_only_for_the_linger():
    limits = Limits(max_tokens=100, linger_s=2.0)
    early = plan(room(10, at=10.0), limits, padded, now=11.0, coming=1)
    assert (riding(early), early.look_again_at) == ([], 12.0)
    assert riding(plan(room(10, at=10.0), limits, padded, now=12.0, coming=1)) == [0]


def test_nobody_lingers_for_nobody():
    p = plan(room(10, at=10.0), Limits(max_tokens=100, linger_s=2.0), padded, now=10.0)
    assert riding(p) == [0]


def test_a_full_batch_does_not_wait():
    p = plan(room(60, 60, at=10.0), Limits(max_tokens=100, linger_s=9.0), padded, now=11.0, coming=5)
    assert riding(p) == [0]

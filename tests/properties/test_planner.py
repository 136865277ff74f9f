"""What is true of every plan, for any waiting room."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st

from service.batching.planner import Limits, Plan, Ticket, plan


def padded(lengths):
    return len(lengths) * max(lengths)


def packed(lengths):
    return sum(lengths)


COSTS = st.sampled_from([padded, packed])
TIMES = st.floats(0, 100)
LIMITS = st.builds(
    Limits,
    max_tokens=st.integers(1, 5_000),
    linger_s=st.floats(0, 10),
    max_padding=st.floats(0, 1),
    window=st.integers(1, 20),
)


@st.composite
def waiting_rooms(draw, min_size=0):
    rows = st.tuples(st.integers(1, 3_000), TIMES, st.one_of(st.just(math.inf), TIMES))
    drawn = draw(st.lists(rows, min_size=min_size, max_size=30))
    return [Ticket(i, n, at, deadline) for i, (n, at, deadline) in enumerate(drawn)]


def by_id(ticket):
    return ticket.ticket_id


def alive(tickets, now):
    return [t for t in tickets if t.deadline > now]


def oldest(tickets):
    return min(tickets, key=lambda t: (t.arrived_at, t.ticket_id))


@given(tickets=waiting_rooms(), limits=LIMITS, cost=COSTS, now=TIMES, coming=st.integers(0, 3))
def test_every_ticket_ends_up_in_exactly_one_place(tickets, limits, cost, now, coming):
    p = plan(tickets, limits, cost, now, coming=coming)
    assert sorted([*p.batch, *p.expired, *p.waiting], key=by_id) == tickets


@given(tickets=waiting_rooms(), limits=LIMITS, cost=COSTS, now=TIMES)
def test_a_batch_of_several_keeps_to_the_budget_and_to_the_padding(tickets, limits, cost, now):
    p = plan(tickets, limits, cost, now)
    lengths = [t.n_tokens for t in p.batch]
    if len(lengths) > 1:
        assert cost(lengths) <= limits.max_tokens
        assert cost(lengths) - sum(lengths) <= limits.max_padding * cost(lengths) * (1 + 1e-9)


@given(tickets=waiting_rooms(min_size=1), limits=LIMITS, cost=COSTS, now=TIMES, coming=st.integers(0, 3))
def test_the_oldest_who_is_not_late_always_rides(tickets, limits, cost, now, coming):
    p = plan(tickets, limits, cost, now, coming=coming)
    if p.batch:
        assert oldest(alive(tickets, now)) in p.batch


@given(tickets=waiting_rooms(), limits=LIMITS, cost=COSTS, now=TIMES, coming=st.integers(0, 3))
def test_exactly_those_are_late_whose_deadline_has_come(tickets, limits, cost, now, coming):
    p = plan(tickets, limits, cost, now, coming=coming)
    assert list(p.expired) == [t for t in tickets if t.deadline <= now]


@given(tickets=waiting_rooms(min_size=1), limits=LIMITS, cost=COSTS, now=TIMES)
def test_somebody_rides_at_once_when_nobody_else_is_coming(tickets, limits, cost, now):
    p = plan(tickets, limits, cost, now)
    assert bool(p.batch) == bool(alive(tickets, now))


@given(tickets=waiting_rooms(min_size=1), limits=LIMITS, cost=COSTS, now=TIMES)
def test_who_is_not_taken_is_looked_at_again_in_time(tickets, limits, cost, now):
    p = plan(tickets, limits, cost, now, coming=1)
    if p.waiting and not p.batch:
        assert p.look_again_at is not None
        assert now < p.look_again_at <= oldest(p.waiting).arrived_at + limits.linger_s
    deadlines = [t.deadline for t in p.waiting]
    assert all(p.look_again_at is not None and p.look_again_at <= d for d in deadlines)


@given(tickets=waiting_rooms(), limits=LIMITS, cost=COSTS)
def test_nobody_starves(tickets, limits, cost):
    """Behind k older tickets one waits for k batches at most, however the lengths fall."""
    older = {
        t.ticket_id: sum((u.arrived_at, u.ticket_id) < (t.arrived_at, t.ticket_id) for u in tickets) for t in tickets
    }
    waiting, n_batches = [Ticket(t.ticket_id, t.n_tokens, t.arrived_at) for t in tickets], 0
    while waiting:
        p = plan(waiting, limits, cost, now=1000.0)
        assert all(older[t.ticket_id] >= n_batches for t in p.waiting)
        waiting, n_batches = list(p.waiting), n_batches + 1
    assert n_batches <= len(tickets)


@given(tickets=waiting_rooms(), limits=LIMITS, cost=COSTS, now=TIMES)
def test_a_plan_is_a_function_of_what_it_is_given(tickets, limits, cost, now):
    shuffled = sorted(tickets, key=lambda t: (t.n_tokens, t.ticket_id))
    one, other = plan(tickets, limits, cost, now), plan(shuffled, limits, cost, now)
    assert (one.batch, set(one.waiting)) == (other.batch, set(other.waiting))


def test_an_empty_room_has_nothing_to_look_at_again():
    assert plan([], Limits(10, 0.0), padded, 0.0) == Plan((), (), (), None)

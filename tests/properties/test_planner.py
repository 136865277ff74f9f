"""What is true of every plan, for any waiting room."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardserve.model.common_prefix import ID_BYTES, key_of
from rewardserve.service.inference.planner import LEAST_SHARED, Limits, Plan, Ticket, lengths_added, plan
from tests.support.service_fakes import n_distinct_beginnings


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
    enough_tokens=st.none() | st.integers(1, 6_000),
    max_padding=st.floats(0, 1),
    window=st.integers(1, 20),
)
FAMILY_LIMITS = st.builds(
    Limits, max_tokens=st.integers(1, 1_500), linger_s=st.just(0.0), enough_tokens=st.none() | st.integers(1, 1_000)
)


@st.composite
def waiting_rooms(draw, min_size=0):
    rows = draw(st.lists(st.tuples(st.integers(1, 3_000), TIMES), min_size=min_size, max_size=30))
    return [Ticket(i, n, at, b"") for i, (n, at) in enumerate(rows)]


@st.composite
def families(draw, min_size=0):
    """A room of rows that begin alike, more or less: a preamble, a prompt after it, an answer; no two are equal."""
    shape = st.tuples(
        st.sampled_from([0, 10, 20, 60]), st.integers(0, 2), st.sampled_from([0, 5, 30, 90]), st.integers(0, 90)
    )
    rows = draw(st.lists(shape, min_size=min_size, max_size=24))
    made = [
        (*range(preamble), *range(1_000 * (prompt + 1), 1_000 * (prompt + 1) + length), *[90_000 + i] * answer)
        for i, (preamble, prompt, length, answer) in enumerate(rows)
    ]
    return [ticket(i, ids) for i, ids in enumerate(dict.fromkeys(ids or (7,) for ids in made))]


def ticket(number, ids):
    return Ticket(number, len(ids), float(number), key_of(ids))


def ids_of(t):
    return tuple(memoryview(t.key).cast("I"))


def computed(tickets):
    return n_distinct_beginnings([ids_of(t) for t in tickets])


def in_common(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def by_id(ticket):
    return ticket.ticket_id


EITHER = st.one_of(
    st.tuples(waiting_rooms(min_size=1), LIMITS, COSTS, st.just(False)),
    st.tuples(families(min_size=1), FAMILY_LIMITS, st.just(packed), st.just(True)),
)


@given(room=EITHER, now=TIMES, coming=st.integers(0, 3), busy=st.booleans())
def test_every_ticket_ends_up_in_exactly_one_place(room, now, coming, busy):
    tickets, limits, cost, shares = room
    p = plan(tickets, limits, cost, now, shares=shares, coming=coming, busy=busy)
    assert sorted([*p.batch, *p.waiting], key=by_id) == tickets


@given(room=EITHER, now=TIMES)
def test_the_oldest_always_rides(room, now):
    tickets, limits, cost, shares = room
    assert tickets[0] in plan(tickets, limits, cost, now, shares=shares).batch


@given(tickets=waiting_rooms(min_size=1), limits=LIMITS, cost=COSTS, now=TIMES)
def test_a_batch_of_several_keeps_to_the_budget_and_to_the_padding(tickets, limits, cost, now):
    lengths = [t.n_tokens for t in plan(tickets, limits, cost, now).batch]
    if len(lengths) > 1:
        assert cost(lengths) <= limits.enough
        assert cost(lengths) - sum(lengths) <= limits.max_padding * cost(lengths) * (1 + 1e-9)


@given(tickets=families(min_size=1), limits=FAMILY_LIMITS)
def test_a_batch_of_families_keeps_to_the_budget_and_exceeds_what_is_enough_only_for_a_long_beginning(tickets, limits):
    batch = plan(tickets, limits, packed, 0.0, shares=True).batch
    if len(batch) > 1:
        assert computed(batch) <= limits.max_tokens
        longest = max(in_common(ids_of(a), ids_of(b)) for a, b in combinations(batch, 2))
        assert computed(batch) <= max(limits.enough, 8 * longest)


@given(tickets=families(min_size=2), limits=FAMILY_LIMITS)
def test_a_family_that_fits_in_a_batch_is_not_torn_apart(tickets, limits):
    riding = set(plan(tickets, limits, packed, 0.0, shares=True).batch)
    for a, b in combinations(tickets, 2):
        beginning = ids_of(a)[: in_common(ids_of(a), ids_of(b))]
        family = {t for t in tickets if ids_of(t)[: len(beginning)] == beginning}
        if len(beginning) >= LEAST_SHARED and sum(t.n_tokens for t in family) <= limits.enough:
            assert family <= riding or not family & riding


@given(
    n_prompt=st.integers(LEAST_SHARED, 300),
    n_answer=st.integers(1, 100),
    n_rows=st.integers(1, 40),
    limits=st.builds(Limits, st.integers(1, 4_000), st.just(0.0), st.none() | st.integers(1, 1_000)),
)
def test_a_family_that_does_not_fit_rides_in_as_few_pieces_as_possible(n_prompt, n_answer, n_rows, limits):
    waiting = [ticket(i, (*[1] * n_prompt, *[2 + i] * n_answer)) for i in range(n_rows)]
    limit = min(limits.max_tokens, max(limits.enough, 8 * n_prompt))
    a_piece = max(1, (limit - n_prompt) // n_answer)
    n_pieces = 0
    while waiting:
        waiting, n_pieces = list(plan(waiting, limits, packed, 0.0, shares=True).waiting), n_pieces + 1
    assert n_pieces == math.ceil(n_rows / a_piece)


@given(n_turns=st.integers(2, 30), n_turn=st.integers(16, 60), enough=st.integers(50, 400))
def test_the_turns_of_one_conversation_do_not_ride_alone_one_after_the_other(n_turns, n_turn, enough):
    """Each row begins with the whole one before it, so that every family in the chain is too large."""
    waiting = [ticket(i, tuple(range(n_turn * (i + 1)))) for i in range(n_turns)]
    longest, total = n_turn * n_turns, 0
    limits = Limits(max(enough, longest), 0.0, enough)
    while waiting:
        p = plan(waiting, limits, packed, 0.0, shares=True)
        waiting, total = list(p.waiting), total + computed(p.batch)
    assert total <= 2 * longest


@given(tickets=families(min_size=1))
def test_what_rows_add_to_a_batch_is_never_less_than_what_is_computed(tickets):
    batch = plan(tickets, Limits(10**6, 0.0), packed, 0.0, shares=True).batch
    lengths = lengths_added(batch, shares=True)
    assert computed(batch) <= sum(lengths) < computed(batch) + LEAST_SHARED * len(batch)
    assert lengths_added(batch, shares=False) == [t.n_tokens for t in batch]


@given(room=EITHER)
def test_nobody_starves(room):
    """Behind k older tickets one waits for k batches at most, however the lengths and the families fall."""
    tickets, limits, cost, shares = room
    waiting, n_batches = tickets, 0
    while waiting:
        p = plan(waiting, limits, cost, now=1000.0, shares=shares)
        assert all(t.ticket_id >= n_batches for t in p.waiting)
        waiting, n_batches = list(p.waiting), n_batches + 1
    assert n_batches <= len(tickets)


@given(room=EITHER, order=st.randoms(use_true_random=False))
def test_a_plan_is_a_function_of_what_it_is_given(room, order):
    tickets, limits, cost, shares = room
    shuffled = order.sample(tickets, len(tickets))
    assert plan(tickets, limits, cost, 0.0, shares=shares) == plan(shuffled, limits, cost, 0.0, shares=shares)


@given(room=EITHER, now=TIMES)
def test_who_is_not_taken_is_looked_at_again_within_the_linger(room, now):
    tickets, limits, cost, shares = room
    p = plan(tickets, limits, cost, now, shares=shares, coming=1)
    if not p.batch:
        assert now < p.look_again_at <= tickets[0].arrived_at + limits.linger_s


@given(room=EITHER)
def test_beside_a_busy_scorer_only_those_ride_who_leave_others_behind(room):
    tickets, limits, cost, shares = room
    free = plan(tickets, limits, cost, 0.0, shares=shares)
    busy = plan(tickets, limits, cost, 0.0, shares=shares, busy=True)
    assert busy == (free if free.waiting else Plan((), tuple(tickets)))


@pytest.mark.parametrize("shares", [False, True])
def test_an_empty_room_has_nothing_to_look_at_again(shares):
    assert plan([], Limits(10, 0.0), padded, 0.0, shares=shares) == Plan((), (), None)


def test_a_key_holds_every_id_in_as_many_bytes():
    assert len(key_of(range(10))) == 10 * ID_BYTES

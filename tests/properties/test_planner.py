"""What is true of every plan, for any queue."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardserve.model.common_prefix import ID_BYTES, row_key
from rewardserve.service.inference.planner import MIN_SHARED_TOKENS, BatchLimits, Plan, QueueEntry, added_lengths, plan
from tests.support.service_fakes import n_distinct_beginnings

PADS = st.booleans()
TIMES = st.floats(0, 100)
LIMITS = st.builds(
    BatchLimits,
    max_tokens=st.integers(1, 5_000),
    linger_s=st.floats(0, 10),
    target_tokens=st.none() | st.integers(1, 6_000),
    max_padding=st.floats(0, 1),
    window=st.integers(1, 20),
)
FAMILY_LIMITS = st.builds(
    BatchLimits,
    max_tokens=st.integers(1, 1_500),
    linger_s=st.just(0.0),
    target_tokens=st.none() | st.integers(1, 1_000),
)


@st.composite
def queues(draw, min_size=0):
    rows = draw(st.lists(st.tuples(st.integers(1, 3_000), TIMES), min_size=min_size, max_size=30))
    return [QueueEntry(i, n, at, b"") for i, (n, at) in enumerate(rows)]


@st.composite
def groups(draw, min_size=0):
    """A queue of rows that begin alike, more or less: a preamble, a prompt after it, an answer; no two are equal."""
    shape = st.tuples(
        st.sampled_from([0, 10, 20, 60]), st.integers(0, 2), st.sampled_from([0, 5, 30, 90]), st.integers(0, 90)
    )
    rows = draw(st.lists(shape, min_size=min_size, max_size=24))
    made = [
        (*range(preamble), *range(1_000 * (prompt + 1), 1_000 * (prompt + 1) + length), *[90_000 + i] * answer)
        for i, (preamble, prompt, length, answer) in enumerate(rows)
    ]
    return [entry(i, ids) for i, ids in enumerate(dict.fromkeys(ids or (7,) for ids in made))]


def entry(number, ids):
    return QueueEntry(number, len(ids), float(number), row_key(ids))


def ids_of(t):
    return tuple(memoryview(t.key).cast("I"))


def computed(entries):
    return n_distinct_beginnings([ids_of(t) for t in entries])


def in_common(a, b):
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def rest(entries, batch):
    return [t for t in entries if t not in batch]


EITHER = st.one_of(
    st.tuples(queues(min_size=1), LIMITS, PADS, st.just(False)),
    st.tuples(groups(min_size=1), FAMILY_LIMITS, st.just(False), st.just(True)),
)


@given(queue=EITHER, now=TIMES, n_expected=st.integers(0, 3), busy=st.booleans())
def test_no_entry_is_in_a_batch_twice(queue, now, n_expected, busy):
    entries, limits, pads_rows, shares_prefixes = queue
    batch = plan(
        entries, limits, now, pads_rows=pads_rows, shares_prefixes=shares_prefixes, n_expected=n_expected, busy=busy
    ).batch
    assert len(set(batch)) == len(batch)
    assert set(batch) <= set(entries)


@given(queue=EITHER, now=TIMES)
def test_the_oldest_is_always_in_the_batch(queue, now):
    entries, limits, pads_rows, shares_prefixes = queue
    assert entries[0] in plan(entries, limits, now, pads_rows=pads_rows, shares_prefixes=shares_prefixes).batch


@given(entries=queues(min_size=1), limits=LIMITS, pads_rows=PADS, now=TIMES)
def test_a_batch_of_several_keeps_to_the_budget_and_to_the_padding(entries, limits, pads_rows, now):
    lengths = [t.n_tokens for t in plan(entries, limits, now, pads_rows=pads_rows).batch]
    if len(lengths) > 1:
        cost = len(lengths) * max(lengths) if pads_rows else sum(lengths)
        assert cost <= limits.target
        assert cost - sum(lengths) <= limits.max_padding * cost * (1 + 1e-9)


@given(entries=groups(min_size=1), limits=FAMILY_LIMITS)
def test_a_batch_of_prefix_groups_keeps_to_the_budget_and_exceeds_what_is_enough_only_for_a_long_beginning(
    entries, limits
):
    batch = plan(entries, limits, 0.0, shares_prefixes=True).batch
    if len(batch) > 1:
        assert computed(batch) <= limits.max_tokens
        longest = max(in_common(ids_of(a), ids_of(b)) for a, b in combinations(batch, 2))
        assert computed(batch) <= max(limits.target, 8 * longest)


@given(entries=groups(min_size=2), limits=FAMILY_LIMITS)
def test_a_prefix_group_that_fits_in_a_batch_is_not_split_apart(entries, limits):
    in_flight = set(plan(entries, limits, 0.0, shares_prefixes=True).batch)
    for a, b in combinations(entries, 2):
        beginning = ids_of(a)[: in_common(ids_of(a), ids_of(b))]
        group = {t for t in entries if ids_of(t)[: len(beginning)] == beginning}
        if len(beginning) >= MIN_SHARED_TOKENS and sum(t.n_tokens for t in group) <= limits.target:
            assert group <= in_flight or not group & in_flight


@given(
    n_prompt=st.integers(MIN_SHARED_TOKENS, 300),
    n_answer=st.integers(1, 100),
    n_rows=st.integers(1, 40),
    limits=st.builds(BatchLimits, st.integers(1, 4_000), st.just(0.0), st.none() | st.integers(1, 1_000)),
)
def test_a_prefix_group_that_does_not_fit_is_scored_in_as_few_pieces_as_possible(n_prompt, n_answer, n_rows, limits):
    waiting = [entry(i, (*[1] * n_prompt, *[2 + i] * n_answer)) for i in range(n_rows)]
    limit = min(limits.max_tokens, max(limits.target, 8 * n_prompt))
    a_piece = max(1, (limit - n_prompt) // n_answer)
    n_pieces = 0
    while waiting:
        waiting, n_pieces = rest(waiting, plan(waiting, limits, 0.0, shares_prefixes=True).batch), n_pieces + 1
    assert n_pieces == math.ceil(n_rows / a_piece)


@given(n_turns=st.integers(2, 30), n_turn=st.integers(16, 60), target=st.integers(50, 400))
def test_the_turns_of_one_conversation_are_not_scored_one_by_one(n_turns, n_turn, target):
    """Each row begins with the whole one before it, so that every group in the chain is too large."""
    waiting = [entry(i, tuple(range(n_turn * (i + 1)))) for i in range(n_turns)]
    longest, total = n_turn * n_turns, 0
    limits = BatchLimits(max(target, longest), 0.0, target)
    while waiting:
        batch = plan(waiting, limits, 0.0, shares_prefixes=True).batch
        waiting, total = rest(waiting, batch), total + computed(batch)
    assert total <= 2 * longest


@given(entries=groups(min_size=1))
def test_what_rows_add_to_a_batch_is_never_less_than_what_is_computed(entries):
    batch = plan(entries, BatchLimits(10**6, 0.0), 0.0, shares_prefixes=True).batch
    lengths = added_lengths(batch, shares_prefixes=True)
    assert computed(batch) <= sum(lengths) < computed(batch) + MIN_SHARED_TOKENS * len(batch)
    assert added_lengths(batch, shares_prefixes=False) == [t.n_tokens for t in batch]


@given(queue=EITHER)
def test_no_entry_starves(queue):
    """Behind k older entries an entry waits for k batches at most, whatever the lengths and the groups."""
    entries, limits, pads_rows, shares_prefixes = queue
    waiting, n_batches = entries, 0
    while waiting:
        waiting = rest(
            waiting, plan(waiting, limits, now=1000.0, pads_rows=pads_rows, shares_prefixes=shares_prefixes).batch
        )
        assert all(t.entry_id >= n_batches for t in waiting)
        n_batches += 1
    assert n_batches <= len(entries)


@given(queue=EITHER, order=st.randoms(use_true_random=False))
def test_a_plan_is_a_function_of_what_it_is_given(queue, order):
    entries, limits, pads_rows, shares_prefixes = queue
    shuffled = order.sample(entries, len(entries))
    assert plan(entries, limits, 0.0, pads_rows=pads_rows, shares_prefixes=shares_prefixes) == plan(
        shuffled, limits, 0.0, pads_rows=pads_rows, shares_prefixes=shares_prefixes
    )


@given(queue=EITHER, now=TIMES)
def test_an_entry_that_waits_for_others_is_planned_again_within_the_linger(queue, now):
    entries, limits, pads_rows, shares_prefixes = queue
    p = plan(entries, limits, now, pads_rows=pads_rows, shares_prefixes=shares_prefixes, n_expected=1)
    if not p.batch:
        assert now < p.replan_at <= entries[0].arrived_at + limits.linger_s


@given(queue=EITHER)
def test_beside_a_busy_scorer_only_a_batch_that_leaves_entries_behind_is_started(queue):
    entries, limits, pads_rows, shares_prefixes = queue
    free = plan(entries, limits, 0.0, pads_rows=pads_rows, shares_prefixes=shares_prefixes)
    busy = plan(entries, limits, 0.0, pads_rows=pads_rows, shares_prefixes=shares_prefixes, busy=True)
    assert busy == (free if rest(entries, free.batch) else Plan(()))


@pytest.mark.parametrize("shares_prefixes", [False, True])
def test_an_empty_queue_has_nothing_to_look_at_again(shares_prefixes):
    assert plan([], BatchLimits(10, 0.0), 0.0, pads_rows=True, shares_prefixes=shares_prefixes) == Plan(())


def test_a_key_holds_every_id_in_as_many_bytes():
    assert len(row_key(range(10))) == 10 * ID_BYTES

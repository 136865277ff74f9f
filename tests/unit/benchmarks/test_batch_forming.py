"""Batches for the engines: everybody rides once, and within the budget."""

import random

import pytest

from benchmarks import batch_forming

BUDGET = 300


@pytest.fixture(scope="module")
def rows():
    rng = random.Random(1)
    stems = [tuple(rng.randrange(99) for _ in range(60)) for _ in range(4)]
    own = [(*stems[i % 4], *(rng.randrange(99) for _ in range(rng.randint(5, 90)))) for i in range(40)]
    return [*own, own[3], own[7], tuple(range(900))]


@pytest.mark.parametrize(
    "cut",
    [
        lambda rows: batch_forming.in_order_of_arrival(rows, 16),
        lambda rows: batch_forming.by_length(rows, BUDGET),
        lambda rows: batch_forming.by_tokens(rows, BUDGET),
        lambda rows: batch_forming.planned(rows, BUDGET),
    ],
)
def test_every_row_is_in_exactly_one_batch(rows, cut):
    assert sorted(i for batch in cut(rows) for i in batch) == list(range(len(rows)))


def test_padding_counts_where_rows_are_padded_and_only_a_lone_row_may_be_larger(rows):
    for batch in batch_forming.by_length(rows, BUDGET):
        assert len(batch) == 1 or len(batch) * max(len(rows[i]) for i in batch) <= BUDGET


def test_without_padding_only_real_tokens_count(rows):
    for batch in batch_forming.by_tokens(rows, BUDGET):
        assert len(batch) == 1 or sum(len(rows[i]) for i in batch) <= BUDGET


def test_equal_rows_are_in_one_batch(rows):
    batch_of = {i: n for n, batch in enumerate(batch_forming.planned(rows, BUDGET)) for i in batch}
    assert batch_of[3] == batch_of[40]
    assert batch_of[7] == batch_of[41]

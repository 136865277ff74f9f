"""What whoever calls a `Scorer` relies on, whatever it is: tests for a fixture `door`, to be imported where one is made.

`from tests.support.scorer_suite import *` beside a fixture that gives a `Door`.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest

from rewardserve.model.backends import Identity
from rewardserve.model.scorer import DISTANCE, Scorer, TokenBatch

__all__ = [
    "test_a_batch_costs_no_less_than_its_longest_row",
    "test_a_longest_row_and_one_of_a_single_token_are_scored",
    "test_a_row_scores_what_an_independent_reference_says",
    "test_a_score_does_not_depend_on_the_company",
    "test_a_scorer_is_alive",
    "test_equal_rows_have_equal_scores",
    "test_every_row_has_every_head_in_its_order",
    "test_no_more_is_computed_than_there_is",
    "test_who_calls_at_the_same_time_gets_his_own",
]

Row = tuple[int, ...]
PATIENCE_S = 300.0


@dataclass(frozen=True)
class Door:
    """A scorer, and the heads of a row from somewhere else. `ids` are a range that the vocabulary has."""

    scorer: Scorer
    identity: Identity
    reference: Callable[[Row], Mapping[str, float]]
    ids: range
    tolerance: float
    n_forwards: int = 1

    def rows(self, lengths: Sequence[int], seed: int = 5) -> tuple[Row, ...]:
        lot = random.Random(seed)
        return tuple(tuple(lot.choices(self.ids, k=n)) for n in lengths)

    def heads(self, rows: Sequence[Row]) -> list[dict[str, float]]:
        scored = self.scorer.score(TokenBatch(tuple(rows))).rows
        return [{name: value for name, value in heads.items() if name != DISTANCE} for heads in scored]

    def close_to(self, heads: Mapping[str, float]) -> object:
        return pytest.approx(dict(heads), abs=self.tolerance)


def test_every_row_has_every_head_in_its_order(door):
    rows = door.rows((5, 40, 1, 17, 33))
    forward, backward = door.heads(rows), door.heads(rows[::-1])[::-1]
    assert all(list(heads) == [name for name, _ in door.identity.heads] for heads in forward)
    assert all(math.isfinite(value) for heads in forward for value in heads.values())
    for one, other in zip(forward, backward, strict=True):
        assert one == door.close_to(other)
    first = [heads[door.identity.heads[0][0]] for heads in forward]
    assert max(first) - min(first) > 10 * door.tolerance, "the scores tell rows apart, or the comparison means nothing"


def test_a_row_scores_what_an_independent_reference_says(door):
    rows = door.rows((2, 9, 30, 64, 129))
    for row, heads in zip(rows, door.heads(rows), strict=True):
        assert heads == door.close_to(door.reference(row))


def test_a_score_does_not_depend_on_the_company(door):
    preamble = door.rows((150,))[0]  # longer than the blocks in which engines keep beginnings
    rows = [preamble + rest for rest in door.rows((3, 20, 41), seed=6)] + [*door.rows((8, 30))]
    together = door.heads(rows)
    for row, heads in zip(rows, together, strict=True):
        assert door.heads([row])[0] == door.close_to(heads)


def test_equal_rows_have_equal_scores(door):
    row, other = door.rows((25, 25))
    one, _, again = door.heads([row, other, row])
    assert one == door.close_to(again)


def test_a_longest_row_and_one_of_a_single_token_are_scored(door):
    rows = door.rows((min(door.scorer.max_tokens, 256), 1))
    assert door.scorer.max_tokens == door.identity.max_tokens
    for row, heads in zip(rows, door.heads(rows), strict=True):
        assert heads == door.close_to(door.reference(row))


def test_who_calls_at_the_same_time_gets_his_own(door):
    batches = [door.rows((7, 19, 31), seed=seed) for seed in range(3 * door.scorer.concurrency)]
    with ThreadPoolExecutor(door.scorer.concurrency) as threads:
        scored = list(threads.map(door.heads, batches, timeout=PATIENCE_S))
    for rows, heads in zip(batches, scored, strict=True):
        assert heads[1] == door.close_to(door.reference(rows[1]))


def test_no_more_is_computed_than_there_is(door):
    done = door.scorer.score(TokenBatch(door.rows((12, 40, 40), seed=9)))
    assert 0 < done.tokens_computed <= 92 * door.n_forwards
    assert done.tokens_padding >= 0


def test_a_batch_costs_no_less_than_its_longest_row(door):
    assert door.scorer.cost([3, 9, 5]) >= 17
    assert door.scorer.cost([3, 9]) <= door.scorer.cost([3, 9, 5])


def test_a_scorer_is_alive(door):
    assert door.scorer.is_alive
    assert door.scorer.concurrency >= 1

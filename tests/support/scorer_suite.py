"""Guarantees of every `Scorer`: tests for a fixture `scorer_under_test`, imported by the modules that define one.

`from tests.support.scorer_suite import *` beside a fixture that gives a `ScorerUnderTest`.
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
    "test_a_longest_row_and_one_of_a_single_token_are_scored",
    "test_a_row_scores_what_an_independent_reference_says",
    "test_a_score_does_not_depend_on_the_batch",
    "test_a_scorer_is_alive",
    "test_calls_at_the_same_time_get_their_scores",
    "test_equal_rows_have_equal_scores",
    "test_every_row_has_every_head_in_its_order",
    "test_no_more_is_computed_than_there_is",
    "test_only_a_scorer_that_says_so_pads",
]

Row = tuple[int, ...]
TIMEOUT_S = 300.0


@dataclass(frozen=True)
class ScorerUnderTest:
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


def test_every_row_has_every_head_in_its_order(scorer_under_test):
    rows = scorer_under_test.rows((5, 40, 1, 17, 33))
    forward, backward = scorer_under_test.heads(rows), scorer_under_test.heads(rows[::-1])[::-1]
    assert all(list(heads) == [name for name, _ in scorer_under_test.identity.heads] for heads in forward)
    assert all(math.isfinite(value) for heads in forward for value in heads.values())
    for one, other in zip(forward, backward, strict=True):
        assert one == scorer_under_test.close_to(other)
    first = [heads[scorer_under_test.identity.heads[0][0]] for heads in forward]
    assert max(first) - min(first) > 10 * scorer_under_test.tolerance, (
        "the scores tell rows apart, or the comparison means nothing"
    )


def test_a_row_scores_what_an_independent_reference_says(scorer_under_test):
    rows = scorer_under_test.rows((2, 9, 30, 64, 129))
    for row, heads in zip(rows, scorer_under_test.heads(rows), strict=True):
        assert heads == scorer_under_test.close_to(scorer_under_test.reference(row))


def test_a_score_does_not_depend_on_the_batch(scorer_under_test):
    preamble = scorer_under_test.rows((150,))[0]  # longer than the blocks of an engine's prefix cache
    rows = [preamble + rest for rest in scorer_under_test.rows((3, 20, 41), seed=6)] + [
        *scorer_under_test.rows((8, 30))
    ]
    together = scorer_under_test.heads(rows)
    for row, heads in zip(rows, together, strict=True):
        assert scorer_under_test.heads([row])[0] == scorer_under_test.close_to(heads)


def test_equal_rows_have_equal_scores(scorer_under_test):
    row, other = scorer_under_test.rows((25, 25))
    one, _, again = scorer_under_test.heads([row, other, row])
    assert one == scorer_under_test.close_to(again)


def test_a_longest_row_and_one_of_a_single_token_are_scored(scorer_under_test):
    rows = scorer_under_test.rows((min(scorer_under_test.scorer.max_tokens, 256), 1))
    assert scorer_under_test.scorer.max_tokens == scorer_under_test.identity.max_tokens
    for row, heads in zip(rows, scorer_under_test.heads(rows), strict=True):
        assert heads == scorer_under_test.close_to(scorer_under_test.reference(row))


def test_calls_at_the_same_time_get_their_scores(scorer_under_test):
    batches = [
        scorer_under_test.rows((7, 19, 31), seed=seed) for seed in range(3 * scorer_under_test.scorer.concurrency)
    ]
    with ThreadPoolExecutor(scorer_under_test.scorer.concurrency) as threads:
        scored = list(threads.map(scorer_under_test.heads, batches, timeout=TIMEOUT_S))
    for rows, heads in zip(batches, scored, strict=True):
        assert heads[1] == scorer_under_test.close_to(scorer_under_test.reference(rows[1]))


def test_no_more_is_computed_than_there_is(scorer_under_test):
    done = scorer_under_test.scorer.score(TokenBatch(scorer_under_test.rows((12, 40, 40), seed=9)))
    assert 0 < done.tokens_computed <= 92 * scorer_under_test.n_forwards
    assert done.tokens_padding >= 0


def test_only_a_scorer_that_says_so_pads(scorer_under_test):
    done = scorer_under_test.scorer.score(TokenBatch(scorer_under_test.rows((3, 9, 5), seed=11)))
    most = (3 * 9 - 17) * scorer_under_test.n_forwards if scorer_under_test.scorer.pads_rows else 0
    assert done.tokens_padding <= most


def test_a_scorer_is_alive(scorer_under_test):
    assert scorer_under_test.scorer.is_alive
    assert scorer_under_test.scorer.concurrency >= 1

"""The noise that is measured is the noise that is there."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from rewardserve.model.backends import ModelSpec, echo
from rewardserve.model.scorer import BatchScores
from rewardserve.service.inference.numeric_noise import NumericNoise, numeric_noise, synthetic_rows
from tests.support.service_fakes import FakeScorer, no_memory_above, scores_with

IDENTITY = echo.load(ModelSpec()).identity
ROWS = [(i,) * n for i, n in enumerate((5, 1, 2, 9, 3, 7), start=1)]


def by_company(batch):
    """A score that grows with every row beside it."""
    return BatchScores(({"score": 0.25 * len(batch)},) * len(batch), 0)


def test_a_scorer_that_depends_on_the_batch_is_noisy():
    noise = numeric_noise(FakeScorer(by_company), IDENTITY, ROWS)
    assert noise == NumericNoise(max=0.25 * (len(ROWS) - 1), p99=0.25 * (len(ROWS) - 1), n_rows=len(ROWS))


def test_one_row_in_many_may_be_beyond_the_99th_percentile():
    rows = [(i,) for i in range(1, 101)]

    def one_is_off(batch):
        return BatchScores(tuple({"score": float(row == (1,) and len(batch) > 1)} for row in batch.rows), 0)

    assert numeric_noise(FakeScorer(one_is_off), IDENTITY, rows) == NumericNoise(max=1.0, p99=0.0, n_rows=100)


def test_a_scorer_that_does_not_is_not():
    scorer = FakeScorer()
    assert numeric_noise(scorer, IDENTITY, ROWS) == NumericNoise(0.0, 0.0, len(ROWS))
    companies = {batch.rows for batch in scorer.batches if 1 < len(batch) < len(ROWS)}
    assert len(companies) > 2, "rows are seen in more than one company"


def test_without_probes_there_are_rows_that_every_model_can_read_and_has_time_for():
    rows = synthetic_rows(max_tokens=60)
    assert {token for row in rows for token in row} <= set(range(1, 16))
    assert max(map(len, rows)) == 60
    assert numeric_noise(FakeScorer(), IDENTITY, synthetic_rows(max_tokens=1000)).n_rows == 16
    assert any(one[:16] == other[:16] for one, other in pairwise(rows)), "beginnings that can be shared"


def test_long_rows_do_not_delay_the_start():
    scorer = FakeScorer()
    noise = numeric_noise(scorer, IDENTITY, [(i,) * (50 * i) for i in range(1, 16)])
    assert 2048 < sum(batch.n_tokens for batch in scorer.batches) <= 4096
    assert 2 <= noise.n_rows < 15


@pytest.mark.parametrize("rows", [[], ROWS[:1], [ROWS[0], ROWS[0]], [(1,) * 2000, (2,) * 3000]])
def test_without_other_rows_that_fit_there_is_no_noise_to_measure(rows):
    assert numeric_noise(FakeScorer(), IDENTITY, rows) is None


@pytest.mark.parametrize("behave", [no_memory_above(1), scores_with(math.nan, ROWS[0].__eq__)])
def test_a_scorer_that_fails_does_not_stop_the_start(behave):
    assert numeric_noise(FakeScorer(behave), IDENTITY, ROWS) is None

"""The noise that is measured is the noise that is there."""

from __future__ import annotations

import pytest

from model.scorer import BatchScores
from service.batching.noise import MOST_ROWS, numeric_noise
from tests.support.service_fakes import FakeScorer, no_memory_above

ROWS = [(i,) * n for i, n in enumerate((5, 1, 2, 9, 3, 7), start=1)]


def raw(heads):
    return heads["score"]


def test_a_scorer_that_depends_on_the_company_is_noisy():
    scorer = FakeScorer(lambda batch: BatchScores(({"score": 0.25 * len(batch)},) * len(batch), 0))
    assert numeric_noise(scorer, raw, ROWS) == pytest.approx(0.25 * (MOST_ROWS - 1))
    assert max(len(row) for batch in scorer.batches for row in batch.rows) == 5, "long rows cost time at start"


def test_a_scorer_that_does_not_is_not():
    assert numeric_noise(FakeScorer(), raw, ROWS) == 0.0


@pytest.mark.parametrize("rows", [[], ROWS[:1], [ROWS[0], ROWS[0]]])
def test_without_company_there_is_nothing_to_measure(rows):
    assert numeric_noise(FakeScorer(), raw, rows) is None


def test_a_scorer_that_fails_does_not_stop_the_start():
    assert numeric_noise(FakeScorer(no_memory_above(1)), raw, ROWS) is None

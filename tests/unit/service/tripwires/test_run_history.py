"""The history of a run, against sums over all its samples."""

from __future__ import annotations

from statistics import fmean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardserve.service.tripwires.run_history import MAX_POINTS, RunHistory
from tests.unit.service.tripwires.test_run_monitor import seen


def test_one_point_a_step_with_its_mean_and_deviation():
    history, scores = RunHistory(), [0.5, 1.5, -1.0]
    history.add(3, [seen(score=s) for s in scores[:2]], kl=0.25)
    history.add(3, [seen(score=scores[2])], kl=0.75)
    history.add(4, [seen(score=9.0)])
    point, latest = history.points
    assert (point.first_step, point.last_step, point.n, latest.first_step) == (3, 3, 3, 4)
    assert point.score_mean == pytest.approx(fmean(scores))
    assert point.score_sd == pytest.approx(pstdev(scores))
    assert point.kl / point.n_kl == 0.5


@given(st.integers(1, 5_000), st.integers(1, 3))
def test_points_are_bounded_and_lose_no_sample(n_steps, stride):
    history = RunHistory()
    sample = [seen(score=1.0)]
    for step in range(0, n_steps * stride, stride):
        history.add(step, sample)
        history.add_gap(0.5)
    assert len(history.points) <= MAX_POINTS
    assert sum(each.n for each in history.points) == n_steps
    assert sum(each.n_gap for each in history.points) == n_steps
    spans = [(each.first_step, each.last_step) for each in history.points]
    assert spans == sorted(spans)
    assert spans[0][0] == 0
    assert spans[-1][1] == (n_steps - 1) * stride


def test_without_steps_a_point_has_a_number_of_samples():
    history = RunHistory()
    for _ in range(300):
        history.add(None, [seen()])
    assert [each.n for each in history.points] == [128, 128, 44]
    assert history.points[0].first_step is None


def test_late_samples_of_earlier_steps_count_where_the_run_is_now():
    history = RunHistory()
    history.add(5, [seen()])
    history.add(4, [seen()])
    assert [(each.last_step, each.n) for each in history.points] == [(5, 2)]


def test_no_samples_make_no_point():
    history = RunHistory()
    history.add(1, [])
    history.add_gap(1.0)
    assert history.points == []

"""A bucket lets through its rate and one burst, says exactly when to come again, and never refuses for ever."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardserve.service.auth.token_bucket import RefillRate, TokenBucketState, full, take

RATES = st.builds(RefillRate, st.floats(0.01, 1e6), st.floats(1, 1e7))
COSTS = st.floats(0.1, 1e6)
STEPS = st.lists(st.tuples(st.floats(0, 1e3), COSTS), max_size=40)


def taken(rate: RefillRate, steps) -> list[tuple[float, float]]:
    """When how much was let through."""
    bucket, now, through = full(rate, 0.0), 0.0, []
    for pause, cost in steps:
        now += pause
        bucket, wait_s = take(bucket, rate, cost, now)
        if not wait_s:
            through.append((now, cost))
    return through


@given(RATES, STEPS)
def test_no_stretch_of_time_sees_more_than_its_rate_a_burst_and_the_last_request(rate, steps):
    through = taken(rate, steps)
    for i, (start, _) in enumerate(through):
        for j in range(i, len(through)):
            end, last = through[j]
            total = sum(cost for _, cost in through[i : j + 1])
            assert total <= (end - start) * rate.per_s + rate.burst + max(0.0, last - rate.burst) + 1e-6 * total


@given(RATES, STEPS, COSTS)
def test_who_comes_when_told_is_let_in_and_not_much_sooner(rate, steps, cost):
    bucket, now = full(rate, 0.0), 0.0
    for pause, each in steps:
        now += pause
        bucket, _ = take(bucket, rate, each, now)
    same, wait_s = take(bucket, rate, cost, now)
    if wait_s:
        assert same == bucket, "a refusal costs nothing"
        assert take(bucket, rate, cost, now + wait_s * 1.001 + 1e-3)[1] == 0.0
        assert take(bucket, rate, cost, now + wait_s * 0.99)[1] > 0.0 or wait_s < 1e-6 * max(1.0, now)


@given(RATES, st.floats(1, 1e9))
def test_a_request_larger_than_a_burst_is_let_through_a_full_bucket_and_paid_off(rate, cost):
    bucket, wait_s = take(full(rate, 0.0), rate, cost, 0.0)
    assert wait_s == 0.0
    assert bucket.level == pytest.approx(rate.burst - cost)


@given(RATES, COSTS, st.floats(0, 1e3))
def test_a_clock_that_runs_backwards_gives_nothing(rate, cost, back):
    bucket = TokenBucketState(0.0, 1e3)
    after, _ = take(bucket, rate, cost, 1e3 - back)
    assert after.level <= bucket.level
    assert after.at == bucket.at

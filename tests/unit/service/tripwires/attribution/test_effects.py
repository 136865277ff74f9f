"""Estimates and intervals, against numbers from tables and against simulation."""

from __future__ import annotations

import random
from math import inf, sqrt
from statistics import mean, stdev

import pytest

from rewardserve.service.tripwires.attribution.effects import (
    Effect,
    corrected_z,
    effect,
    effective_number,
    estimate,
    explained_share,
    paid,
    t_quantile,
    z_of_t,
)


@pytest.mark.parametrize(("df", "quantile"), [(4, 2.776), (7, 2.365), (15, 2.131), (30, 2.042), (255, 1.969)])
def test_t_quantile_is_that_of_the_table_within_one_percent(df, quantile):
    assert t_quantile(df) == pytest.approx(quantile, rel=0.01)
    assert z_of_t(quantile, df) == pytest.approx(1.96, rel=0.01)
    assert z_of_t(-quantile, df) == -z_of_t(quantile, df)


def test_z_of_a_difference_without_spread_is_large_and_without_degrees_of_freedom_zero():
    assert z_of_t(inf, 10) == 40.0
    assert z_of_t(-inf, 10) == -40.0
    assert z_of_t(inf, 0) == 0.0


def test_correction_multiplies_the_probability():
    assert corrected_z(3.29, 1) == pytest.approx(3.29)
    assert corrected_z(5.0, 1000) == pytest.approx(3.44, abs=0.01)  # p = 5.7e-7 becomes 5.7e-4
    assert corrected_z(-5.0, 1000) == -corrected_z(5.0, 1000)
    assert corrected_z(2.0, 1000) == 0.0
    assert corrected_z(40.0, 1000) > 30.0


def test_effect_of_independent_prompts_is_the_t_interval():
    values = [0.1, 0.4, 0.35, 0.8, 0.2, 0.6, 0.5, 0.3]
    found = effect(values, range(8))
    assert found.mean == pytest.approx(mean(values))
    assert found.std_error == pytest.approx(stdev(values) / sqrt(8))
    assert (found.n, found.df) == (8, 7)
    assert found.high - found.mean == pytest.approx(2.365 * found.std_error, rel=0.01)


def test_sixteen_equal_responses_to_a_prompt_count_once():
    values = [0.1, 0.4, 0.35, 0.8, 0.2, 0.6, 0.5, 0.3]
    once = effect(values, range(8))
    repeated = effect([value for value in values for _ in range(16)], [key for key in range(8) for _ in range(16)])
    assert repeated[:3] == pytest.approx(once[:3])
    assert repeated.n == 128


def test_one_prompt_or_none_has_an_infinite_interval():
    assert effect([1.0, 2.0], [5, 5]) == Effect(1.5, -inf, inf, 2, inf, 0)
    assert effect([], [])[:4] == (0.0, -inf, inf, 0)
    with pytest.raises(ValueError, match="zip"):
        effect([1.0], [])


def test_t_of_an_effect():
    assert estimate(2.0, 0.5, 10, 11).t == 4.0
    assert estimate(2.0, 0.0, 10, 11).t == inf
    assert estimate(0.0, 0.0, 10, 11).t == 0.0


def test_effective_number_of_prompts_is_that_of_equal_sizes():
    assert effective_number([4] * 10) == 10.0
    assert effective_number([91] + [1] * 9) == pytest.approx(1.21, abs=0.01)
    assert effective_number([]) == 0.0


def test_paid_is_the_difference_of_means_in_standard_deviations():
    scores = [1.0, 3.0] * 10 + [0.0, 2.0] * 10
    found = paid(scores, range(40), (1 << 20) - 1, 2.0)
    assert found.mean == pytest.approx(0.5)
    assert found.std_error == pytest.approx(sqrt(2 * 1.0 / 20) / 2.0, rel=0.05)


def test_paid_is_unknown_where_a_side_has_few_prompts():
    scores = [float(index) for index in range(40)]
    assert paid(scores, range(40), 0b1111111, 1.0) is None
    assert paid(scores, range(40), 0b11111111, 1.0) is not None
    assert paid(scores, [index // 10 for index in range(40)], (1 << 20) - 1, 1.0) is None
    assert paid(scores, range(40), (1 << 20) - 1, 0.0) is None


def covers(rng, per_prompt):
    """Whether the interval of a feature that is not paid for holds zero, with scores that depend on the prompt."""
    scores, keys, event = [], [], 0
    for key in range(24):
        level, tends = rng.gauss(0, 1), rng.random()
        for _ in range(per_prompt):
            event |= (rng.random() < tends) << len(scores)
            scores.append(level + rng.gauss(0, 0.5))
            keys.append(key)
    found = paid(scores, keys, event, 1.0)
    return found.low < 0.0 < found.high


def test_interval_of_pay_holds_with_groups_of_sixteen():
    rng = random.Random(3)
    assert sum(covers(rng, 16) for _ in range(200)) >= 180


def simulated_ratio(rng, effect_mean, growth, score_growth):
    def noisy(value, error):
        return estimate(value + rng.gauss(0, error), error, 200, 256)

    return explained_share(noisy(effect_mean, 0.1), noisy(growth, 0.03), noisy(score_growth, 0.1))


def test_interval_of_the_explained_share_covers():
    rng = random.Random(4)
    found = [simulated_ratio(rng, 1.5, 0.3, 0.6) for _ in range(400)]
    assert 0.92 <= sum(each.low < 0.75 < each.high for each in found) / 400 <= 0.98
    assert mean(each.mean for each in found) == pytest.approx(0.75, rel=0.06)


def test_explained_share_of_a_score_that_may_not_have_grown_is_unbounded():
    earned, growth = estimate(1.0, 0.1, 30, 32), estimate(0.3, 0.03, 500, 512)
    assert explained_share(earned, growth, estimate(0.1, 0.1, 500, 512))[1:3] == (-inf, inf)
    assert explained_share(earned, growth, estimate(0.0, inf, 0, 0))[:3] == (0.0, -inf, inf)
    known = explained_share(earned, growth, estimate(0.5, 0.1, 500, 512))
    assert known.mean == pytest.approx(0.6)
    assert 0.3 < known.low < known.mean < known.high < 1.2


def test_covariance_of_the_two_growths_narrows_the_interval():
    earned, growth, score = estimate(1.0, 0.05, 60, 64), estimate(0.5, 0.04, 500, 512), estimate(0.5, 0.06, 500, 512)
    apart, together = (explained_share(earned, growth, score, covariance) for covariance in (0.0, 0.002))
    assert together.high - together.low < 0.8 * (apart.high - apart.low)

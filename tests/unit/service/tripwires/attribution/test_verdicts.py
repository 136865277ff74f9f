"""Which findings page: bounds by three standard errors, and a growth that is significant over all reports of a run."""

from __future__ import annotations

from fractions import Fraction
from math import inf, isclose
from statistics import NormalDist

import pytest

from rewardserve.service.tripwires.attribution.effects import Effect, corrected_z, effect, estimate
from rewardserve.service.tripwires.attribution.findings import Feature, Finding
from rewardserve.service.tripwires.attribution.verdicts import artefact_share, contradiction, has_grown, score_has_grown


def known(mean, std_error=0.0, n=64):
    return estimate(mean, std_error, n - 1, n)


def finding(z, growth=0.3):
    return Finding((Feature("word"),), 0.0, growth, known(growth, 0.03), z, None, None, 0, 0.0, (), (), None)


def test_the_error_probabilities_of_all_reports_sum_to_that_of_the_run():
    assert sum(Fraction(1, k * (k + 1)) for k in range(1, 10_000)) == 1 - Fraction(1, 10_000)


@pytest.mark.parametrize("n_reports", [1, 7, 158])
def test_a_feature_has_grown_where_its_probability_times_the_number_of_looks_is_below_one_in_a_thousand(n_reports):
    limit = -NormalDist().inv_cdf(0.001 / (n_reports * (n_reports + 1)) / 2)
    assert has_grown(finding(limit + 0.02), n_reports)
    assert not has_grown(finding(limit - 0.02), n_reports)
    assert not has_grown(finding(limit + 1, growth=-0.3), n_reports)


def test_a_judge_contradicts_by_bounds_of_three_standard_errors():
    assert contradiction(known(0.8, 0.1), known(-0.3, 0.1)) == pytest.approx(0.5)
    assert contradiction(known(0.8, 0.1), known(-0.15, 0.1)) == pytest.approx(0.5), "its upper bound is .15 < .5 / 3"
    assert contradiction(known(0.8, 0.1), known(0.0, 0.1)) == 0.0, "its upper bound is .3"
    assert contradiction(known(0.2, 0.1), known(-2.0, 0.1)) == 0.0, "the model may pay nothing"
    assert contradiction(known(-0.8, 0.1), known(-2.0, 0.1)) == 0.0
    assert contradiction(known(0.8, 0.1), None) == 0.0
    assert contradiction(known(0.8, 0.1, n=12), known(-0.3, 0.1)) == 0.0
    assert contradiction(known(0.8, 0.1), Effect(-1.0, -inf, inf, 64, inf, 0)) == 0.0


def test_the_share_of_an_artefact_is_a_lower_bound_over_an_upper_one():
    exact = artefact_share(known(2.0), known(0.3), known(0.6))
    assert exact == pytest.approx(1.0)
    by_hand = (0.6 - 3 * ((2.0 * 0.03) ** 2 + (0.3 * 0.1) ** 2 + (0.03 * 0.1) ** 2) ** 0.5) / (0.6 + 3 * 0.1)
    assert artefact_share(known(2.0, 0.1), known(0.3, 0.03), known(0.6, 0.1)) == pytest.approx(by_hand)
    assert artefact_share(known(2.0), known(0.3), known(0.1, 0.05)) == 1.0, "the whole at most"
    assert artefact_share(known(0.0, 0.1), known(0.3, 0.03), known(0.6, 0.1)) == 0.0
    assert artefact_share(known(2.0), known(0.3), known(0.0)) == 0.0
    assert artefact_share(known(2.0), known(0.3), Effect(0.0, -inf, inf, 0, inf, 0)) == 0.0


def test_of_an_edit_that_the_judge_has_scored_what_the_model_pays_beyond_the_judge_counts():
    alone = artefact_share(known(2.0, 0.1), known(0.3, 0.03), known(0.6, 0.1))
    both = artefact_share(known(2.0, 0.1), known(0.3, 0.03), known(0.6, 0.1), known(1.0, 0.05))
    assert both == pytest.approx(
        artefact_share(known(1.0, (0.1**2 + 0.05**2) ** 0.5), known(0.3, 0.03), known(0.6, 0.1))
    )
    assert 0.0 < both < alone
    assert artefact_share(known(2.0, 0.1), known(0.3, 0.03), known(0.6, 0.1), known(-1.0, 0.0)) == alone, (
        "a cost is no pay"
    )
    assert artefact_share(known(2.0, 0.1), known(0.3, 0.03), known(0.6, 0.1), known(1.9, 0.1)) == 0.0
    assert artefact_share(known(2.0, 0.1), known(0.3, 0.03), known(0.6, 0.1), known(1.9, 0.1, n=12)) == alone


@pytest.mark.parametrize(
    ("mean", "std_error", "grown"),
    [(0.2, 0.1, True), (0.19, 0.1, False), (0.0, 0.0, False), (-0.2, 0.01, False), (0.1, inf, False)],
)
def test_a_mean_score_has_grown_from_two_standard_errors_on(mean, std_error, grown):
    assert score_has_grown(mean, std_error) == grown


def test_effects_of_paired_scores_are_judged_by_their_prompts():
    differences, keys = [0.5 + 0.1 * (i % 3) for i in range(48)], [i // 2 for i in range(48)]
    earned = effect(differences, keys)
    assert isclose(earned.mean, 0.6)
    assert contradiction(earned, effect([-0.1] * 48, keys)) == pytest.approx(0.6 - 3 * earned.std_error)
    assert corrected_z(5.0, 1) == pytest.approx(5.0, abs=1e-6)

"""Which findings page: by growth and bounds that are significant over all reports of a run, where responses score higher."""

from __future__ import annotations

from fractions import Fraction
from math import inf, isclose
from statistics import NormalDist

import pytest

from rewardserve.service.tripwires.attribution.edits import Append, Cut, Edit, Lengthen
from rewardserve.service.tripwires.attribution.effects import Effect, corrected_z, effect, estimate, t_quantile
from rewardserve.service.tripwires.attribution.findings import Feature, Finding
from rewardserve.service.tripwires.attribution.verdicts import (
    artefact_share,
    contradiction,
    critical_z,
    has_grown,
    length_has_grown,
    lower_bound,
    score_has_grown,
    scores_higher,
    shortfall,
)


def known(mean, std_error=0.0, n=64):
    """An estimate of so many prompts that Student's distribution is the normal one."""
    return estimate(mean, std_error, 1e9, n)


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
    bound = 0.6 - t_quantile(23.0, 3.0) * earned.std_error
    assert contradiction(earned, effect([-0.1] * 48, keys)) == pytest.approx(bound)
    assert corrected_z(5.0, 1) == pytest.approx(5.0, abs=1e-6)


@pytest.mark.parametrize(("n_reports", "n_tests"), [(1, 1), (1, 2), (40, 2), (10_000, 2)])
def test_a_bound_of_a_look_has_its_part_of_the_error_of_the_run(n_reports, n_tests):
    z = critical_z(n_reports, n_tests)
    assert 2 * NormalDist().cdf(-z) * n_tests * n_reports * (n_reports + 1) == pytest.approx(0.001, rel=0.01)
    assert contradiction(known(1.0, 0.1), known(-9.0), z) == pytest.approx(max(0.0, 1.0 - 0.1 * z))
    assert contradiction(known(0.9), known(0.3 - 0.1 * (z + 0.01), 0.1), z) == 0.9
    assert contradiction(known(0.9), known(0.3 - 0.1 * (z - 0.01), 0.1), z) == 0.0


def test_a_bound_over_few_prompts_is_further_from_the_estimate():
    few = estimate(1.0, 0.1, 15.0, 16)
    assert lower_bound(few, 4.0) == pytest.approx(1.0 - 0.1 * t_quantile(15.0, 4.0))
    assert lower_bound(few, 4.0) < lower_bound(known(1.0, 0.1), 4.0) - 0.14


@pytest.mark.parametrize("z", [3.0, 4.7])
def test_a_share_is_smaller_at_a_later_report(z):
    parts = known(1.0, 0.05), known(0.3, 0.03), known(0.3, 0.09)
    explained = 0.3 - z * ((1.0 * 0.03) ** 2 + (0.3 * 0.05) ** 2 + (0.03 * 0.05) ** 2) ** 0.5
    assert artefact_share(*parts, z=z) == pytest.approx(explained / (0.3 + z * 0.09))


@pytest.mark.parametrize(
    ("pays", "has_grown", "higher"),
    [
        (known(0.3, 0.1), False, True),
        (known(0.19, 0.1), False, False),
        (known(0.19, 0.1), True, True),
        (known(-0.1, 0.1), True, False),
        (known(-0.1, 0.1), False, False),
        (None, True, True),
        (None, False, False),
    ],
)
def test_responses_with_a_feature_score_higher_surely_or_at_all_where_the_mean_score_grew(pays, has_grown, higher):
    assert scores_higher(pays, has_score_grown=has_grown) == higher


@pytest.mark.parametrize(
    ("step", "growth", "n_reports", "has"),
    [
        (Cut("word", 5), (-0.3, 0.06), 5, True),
        (Cut("word", 5), (-0.3, 0.06), 100, False),
        (Cut("word", 5), (0.3, 0.06), 5, False),
        (Lengthen(("more",), 50), (0.3, 0.06), 5, True),
        (Lengthen(("more",), 50), (-0.3, 0.06), 5, False),
        (Append((" So.",)), (0.3, 0.06), 5, False),
        (Cut("word", 5), None, 5, False),
        (Cut("word", 5), (-0.3, 0.0), 5, False),
    ],
)
def test_an_edit_of_the_length_has_grown_with_the_mean_length_of_the_run_in_its_direction(step, growth, n_reports, has):
    assert length_has_grown(Edit((step,)), growth, n_reports) == has


def test_the_shortfall_of_the_judge_is_below_a_third_of_the_models_pay():
    found = shortfall(known(0.9, 0.3), known(-0.2, 0.1))
    assert (found.mean, found.std_error) == (pytest.approx(0.5), pytest.approx(0.02**0.5))

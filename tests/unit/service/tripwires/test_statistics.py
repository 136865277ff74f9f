"""The number that each wire looks at, of sums that can be checked by hand."""

from __future__ import annotations

from math import sqrt
from statistics import NormalDist

import pytest

from rewardserve.service.tripwires.baseline import Baseline, BaselineStat
from rewardserve.service.tripwires.running_sums import ENTRIES, RunningSums
from rewardserve.service.tripwires.statistics import (
    MIN_AUDITED,
    AuditDivergence,
    AuditGap,
    ComponentShare,
    ExcessMean,
    HoneypotHitRate,
    KlRoot,
    Mean,
    MeanShift,
    RunSnapshot,
    Saturation,
    ShareAtStart,
    ShareGrowth,
)
from rewardserve.service.tripwires.strata import AuditGapMean
from rewardserve.service.tripwires.wires import WIRES


def sums(**known):
    return RunningSums(float(known.get(name, 0.0)) for name in ENTRIES)


def view(baseline=None, honeypots=(0, 0), kl=None, window=128, **known):
    return RunSnapshot(sums(**known), baseline or Baseline(), honeypots, kl, window)


def test_a_mean_is_one_from_so_many_samples_on():
    wires = {wire.name: wire.statistic for wire in WIRES}
    names = ("length_high", "flat_groups", "duplicate_across_prompts", "probing")
    assert ([wires[name].min_samples for name in names], MIN_AUDITED) == ([50, 16, 100, 200], 16)
    assert view(responses=49, length=98).mean("length") is None
    assert view(responses=50, length=100).mean("length") == 2.0
    assert view(audited=15, audit_positive=15).mean("audit", MIN_AUDITED) is None
    assert view(audited=16, audit_positive=8).mean("audit", MIN_AUDITED) == 0.5


def test_with_small_windows_five_of_them_are_enough():
    assert view(responses=19, length=38, window=4).mean("length") is None
    assert view(responses=20, length=40, window=4).mean("length") == 2.0


def test_a_shift_is_from_the_usual_mean_and_may_be_to_either_side():
    usual = Baseline({"length": BaselineStat(4.0, 0.5)})
    assert MeanShift("length")(view(usual, responses=100, length=475)) == 1.5
    assert MeanShift("length", -1.0)(view(usual, responses=100, length=475)) == -1.5
    assert MeanShift("length")(view(usual)) is None
    assert MeanShift("length")(view(responses=100, length=475)) is None


def test_a_share_is_of_the_samples_that_could_have_it():
    assert Mean("judge_injection")(view(samples=100, texts=50, judge_injection=2)) == 0.04
    assert Mean("judge_injection")(view(samples=100, texts=49, judge_injection=2)) is None


@pytest.mark.parametrize(("n_script", "excess"), [(23, 0.0), (24, 0.0), (25, 25 / 64)])
def test_an_excess_is_the_whole_share_beyond_three_times_the_usual_one(n_script, excess):
    baseline = Baseline({"foreign_script": BaselineStat(1 / 8, 0.1)})
    assert ExcessMean("foreign_script")(view(baseline, texts=64, foreign_script=n_script)) == excess
    assert ExcessMean("foreign_script")(view(texts=64, foreign_script=n_script)) == n_script / 64, (
        "where nothing is usual"
    )
    assert ExcessMean("foreign_script")(view(baseline)) is None


def test_saturation_needs_a_level_that_counts_as_saturated():
    assert Saturation()(view(Baseline(saturation=3.0), samples=50, saturated=20)) == 0.4
    assert Saturation()(view(samples=50, saturated=20)) is None


def test_a_gap_is_between_the_means_of_the_audited_samples():
    audited = {"audit_positive": 4, "audit_negative": 8, "audited_score_positive": 30, "audited_score_negative": 2}
    made = sums(audited=16, audit_gap_clustered=64, **audited)
    assert (made.audit_gap, made.audit_gap_error) == (28 / 16 - -4 / 16, 0.5)
    assert (sums().audit_gap, sums().audit_gap_error) == (None, 0.0)


@pytest.mark.parametrize("n_windows", [4, 60, 10_000])
def test_the_growth_of_a_gap_is_a_bound_that_holds_for_all_windows_of_a_run(n_windows):
    run = RunSnapshot(sums(), Baseline(), gap_growth=AuditGapMean(1.5, 0.1), n_windows=n_windows)
    z = -NormalDist().inv_cdf(0.001 / 2 / (n_windows * (n_windows + 1)))
    assert AuditGap()(run) == pytest.approx(1.5 - 0.1 * z)
    assert AuditGap()(view()) is None


def test_a_share_grows_from_that_of_the_start_of_the_run_beyond_three_standard_errors():
    grows = ShareGrowth("duplicate_across_prompts", 100)
    baseline = Baseline({"duplicate_across_prompts": BaselineStat(0.1, 0.3, 512, 0.01)})
    recent = {"texts": 200, "duplicate_across_prompts": 50, "duplicate_across_prompts_clustered": (200 * 0.02) ** 2}
    assert grows(view(baseline, **recent)) == pytest.approx(0.25 - 0.1 - 3 * sqrt(0.01**2 + 0.02**2))
    assert grows(view(baseline, **{**recent, "texts": 99})) is None
    assert grows(view(**recent)) is None
    assert ShareAtStart("duplicate_across_prompts")(view(baseline)) == pytest.approx(0.07)
    assert ShareAtStart("duplicate_across_prompts")(view()) is None


def test_divergence_is_that_of_the_test_of_audits():
    assert AuditDivergence()(RunSnapshot(sums(), Baseline(), divergence=0.3)) == 0.3
    assert AuditDivergence()(view()) is None


def test_honeypots_are_a_share_from_fifty_answers_on():
    assert [HoneypotHitRate()(view(honeypots=each)) for each in ((49, 2), (50, 2), (200, 0))] == [None, 0.04, 0.0]


def of_parts(*variances):
    """Two samples whose parts have these variances: each is once above its mean, once as much below."""
    running_sums = RunningSums(n_components=len(variances))
    for sign in (1.0, -1.0):
        running_sums.add("samples")
        running_sums.add_components([sign * variance**0.5 for variance in variances])
    return running_sums


@pytest.mark.parametrize(
    ("usual", "now", "ratio"),
    [
        ((0.36, 0.09), (0.25, 0.25), 2.5),
        ((0.25, 0.25), (0.36, 0.04), 1.8),
        ((0.99, 0.01), (0.75, 0.25), 2.5),  # 0.25 beside 0.1, as a hundredth is hardly anything
        ((0.25,), (4.0,), 1.0),
        ((0.25, 0.25), (0.0, 0.0), None),
        ((0.0, 0.0), (0.25, 0.25), None),
        ((0.25,), (0.25, 0.25), None),
        ((), (0.25,), None),
        ((), (), None),
    ],
)
def test_parts_are_compared_by_their_shares_of_the_variance(usual, now, ratio):
    baseline = Baseline({f"component_{i}": BaselineStat(0.0, variance**0.5) for i, variance in enumerate(usual)})
    assert ComponentShare()(RunSnapshot(of_parts(*now), baseline)) == (None if ratio is None else pytest.approx(ratio))


def test_the_root_of_the_kl_is_known_where_the_trainer_sends_it():
    assert (KlRoot()(view(kl=6.25)), KlRoot()(view(kl=0.0)), KlRoot()(view())) == (2.5, 0.0, None)

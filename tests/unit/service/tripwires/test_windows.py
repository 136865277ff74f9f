"""Counts of a sample, and the evaluation of a full window."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from math import sqrt
from random import Random
from statistics import stdev

import pytest

from rewardserve.model.traits import TOKEN_TRAITS, TRAITS
from rewardserve.service.tripwires.alert import VOTE, Alert
from rewardserve.service.tripwires.baseline import Baseline, BaselineSource, BaselineStat, LearnedBaselines
from rewardserve.service.tripwires.drift import PromptMeans
from rewardserve.service.tripwires.features import SampleFeatures
from rewardserve.service.tripwires.run_monitor import RunMonitor
from rewardserve.service.tripwires.run_state import ActiveAlert, MonitorLimits
from rewardserve.service.tripwires.running_sums import ENTRIES, RunningSums
from rewardserve.service.tripwires.window_sums import prompt_means
from rewardserve.service.tripwires.wires import WIRES, AlertText, Wire

SAMPLE = SampleFeatures(1, None, 0.0, 0.0, is_capped=False, traits=())


def monitor_of(*samples, baseline=None, wires=WIRES, **limits):
    """The board after a run called `a` has sent these at once; with a window that is never full unless it is said."""
    monitor = RunMonitor(
        BaselineSource(baseline or Baseline()), MonitorLimits(**{"window": 10**9, "warm_up": 1, **limits}), wires
    )
    monitor.observe("a", 0, samples, 0.0)
    return monitor


def prompts(sample, n=60):
    """The same sample for so many prompts."""
    return [sample._replace(prompt_hash=i) for i in range(n)]


def entries(running_sums):
    """Those that are not zero."""
    return {name: running_sums[name] for name in ENTRIES if running_sums[name]}


# -- one sample -------------------------------------------------------------------------------------------------------


def test_every_number_of_a_sample_is_counted():
    sample = SAMPLE._replace(
        score=-2.0, is_capped=True, spread=3.0, distance=-0.5, audit=4.0, is_honeypot_hit=True,
        traits=tuple(float(i) for i in range(len(TRAITS))),
    )  # fmt: skip
    traits = {name: float(i) for i, name in enumerate(TRAITS) if i}
    assert entries(monitor_of(sample).runs["a"].window) == {
        "samples": 1.0, "responses": 1.0, "texts": 1.0, "capped": 1.0, "score_negative": 2.0, "score_squared": 4.0,
        "spreads": 1.0, "spread": 3.0, "spread_squared": 9.0, "distances": 1.0, "distance_negative": 0.5,
        "distance_squared": 0.25, "audited": 1.0, "audit_positive": 4.0, "audited_score_negative": 2.0,
        "honeypots": 1.0, "honeypot_hits": 1.0, **traits, **{f"{name}_squared": value * value for name, value in traits.items()},
    }  # fmt: skip


@pytest.mark.parametrize(
    ("traits", "expected"),
    [
        ((), {}),
        ((1.0,) * len(TOKEN_TRAITS), {"responses": 1.0}),
        ((1.0,) * len(TRAITS), {"responses": 1.0, "texts": 1.0}),
    ],
)
def test_a_sample_counts_as_response_and_as_text_where_it_has_their_traits(traits, expected):
    window = monitor_of(SAMPLE._replace(traits=traits)).runs["a"].window
    assert {name: window[name] for name in ("responses", "texts") if window[name]} == expected


def test_a_level_is_saturated_above_that_of_the_reference():
    levels = [SAMPLE._replace(score=score) for score in (2.9, 3.0, 3.1)]
    assert monitor_of(*levels, baseline=Baseline(saturation=3.0)).runs["a"].window["saturated"] == 1.0
    assert monitor_of(*levels).runs["a"].window["saturated"] == 0.0


def test_a_group_is_flat_where_several_responses_have_one_reward():
    groups = {1: (0.5, 0.5), 2: (0.5, 0.6), 3: (0.5,), 4: (0.1, 0.2, 0.1), 5: (0.0, 0.0, 0.0)}
    samples = [
        SAMPLE._replace(prompt_hash=prompt_hash, reward=value)
        for prompt_hash, values in groups.items()
        for value in values
    ]
    for size in (1, 2, len(samples)):  # of requests
        monitor = monitor_of(window=len(samples))
        for i in range(0, len(samples), size):
            monitor.observe("a", 0, samples[i : i + size], 0.0)
        total = monitor.runs["a"].total
        assert (total["prompts"], total["groups"], total["flat_groups"]) == (5.0, 4.0, 2.0)


@pytest.mark.parametrize(("prompt_hash", "kind"), [(1, "duplicate_within_prompt"), (2, "duplicate_across_prompts")])
def test_a_text_that_was_sent_before_is_shown_and_from_the_65th_time_on_as_one_that_is_searched(prompt_hash, kind):
    first = SAMPLE._replace(text_digest=7, evidence="first")
    samples = [
        SAMPLE._replace(text_digest=7, prompt_hash=prompt_hash if i % 2 else 1, evidence=f"{i}") for i in range(1, 66)
    ]
    run = monitor_of(first, *samples, evidence=3).runs["a"]
    is_probing = kind == "duplicate_within_prompt"  # fixed answers go to many prompts
    assert (run.window[kind], run.window["probing"]) == (65.0, 2.0 * is_probing)
    searched = {"probing": deque(["64", "65"])} if is_probing else {}
    assert run.wire_evidence == {kind: deque(["63", "64", "65"]), **searched}
    assert run.recent_evidence == deque(["63", "64", "65"])


def test_a_honeypot_hit_is_shown():
    samples = [SAMPLE._replace(is_honeypot_hit=takes, evidence=f"{i}") for i, takes in enumerate((False, True, None))]
    run = monitor_of(*samples).runs["a"]
    assert (run.window["honeypots"], run.window["honeypot_hits"], run.honeypots) == (2.0, 1.0, deque([False, True]))
    assert run.wire_evidence == {"honeypots": deque(["1"])}


def test_the_texts_that_were_not_sent_for_longest_are_forgotten():
    texts = [SAMPLE._replace(text_digest=text) for text in (1, 2, 1, 3)]
    run = monitor_of(*texts, remembered_texts=2).runs["a"]
    assert (list(run.texts), run.window["duplicate_within_prompt"]) == ([1, 3], 1.0)


def test_a_request_without_step_and_kl_changes_neither():
    monitor = monitor_of(SAMPLE)
    monitor.observe("a", 5, [SAMPLE], 0.0, kl=2.0)
    monitor.observe("a", None, [SAMPLE], 0.0)
    assert (monitor.runs["a"].step, monitor.runs["a"].kl) == (5, 2.0)
    monitor.observe("a", 0, [SAMPLE], 0.0, kl=0.0)
    assert (monitor.runs["a"].step, monitor.runs["a"].kl) == (0, 0.0)


# -- one window -------------------------------------------------------------------------------------------------------

CAPPED = SAMPLE._replace(is_capped=True)


def test_nothing_trips_before_a_run_has_shown_what_is_usual():
    monitor = monitor_of(window=60, warm_up=3)
    assert [[f.wire for f in monitor.observe("a", i, prompts(CAPPED), 0.0)] for i in range(4)] == [
        [],
        [],
        ["capped"],
        [],
    ]


def test_a_request_that_fills_several_windows_trips_in_each():
    monitor = monitor_of(window=60)
    begs = CAPPED._replace(traits=tuple(float(name == "judge_injection") for name in TRAITS), is_capped=False)
    found = monitor.observe("a", 1, prompts(CAPPED) + prompts(begs) + prompts(SAMPLE), 0.0)
    assert [f.wire for f in found] == ["capped", "judge_injection"]
    run = monitor.runs["a"]
    assert (run.n_windows, run.window["samples"], run.total["samples"], run.total["capped"]) == (3, 0.0, 180.0, 60.0)
    assert run.smooth["samples"] == pytest.approx(60 * (0.81 + 0.9 + 1))
    assert run.smooth["capped"] == pytest.approx(60 * 0.81)


def of_votes(*statistics):
    """A wire with votes for each number, which is its statistic of any window."""
    text = AlertText("", "", "")
    return [Wire(f"w{i}", lambda _, s=s: s, 0.4, votes=True, text=text) for i, s in enumerate(statistics)]


@pytest.mark.parametrize(("votes_for_a_page", "pages"), [(2, True), (3, True), (4, False)])
def test_a_page_needs_so_many_votes(votes_for_a_page, pages):
    """The first wire has two votes, the second one, the others none."""
    wires = of_votes(0.9, 0.5, 0.4, None)
    monitor = RunMonitor(BaselineSource(), MonitorLimits(window=1, warm_up=1, votes_for_a_page=votes_for_a_page), wires)
    found = monitor.observe("a", 7, [SAMPLE._replace(evidence="e")], 5.0)
    expected = [Alert(f"w{i}", "warn", statistic, 0.4, 7, ("e",)) for i, statistic in enumerate((0.9, 0.5))]
    if pages:
        expected.append(Alert(VOTE, "page", 3.0, votes_for_a_page, 7, ("e",)))
    assert found == expected
    assert monitor.runs["a"].alerts == {each.wire: ActiveAlert(each, 5.0) for each in expected}
    assert monitor.runs["a"].statistics == {"w0": 0.9, "w1": 0.5, "w2": 0.4, VOTE: 3.0}


# -- baselines --------------------------------------------------------------------------------------------------------


def learning(known=None):
    """A monitor whose runs learn from three samples, and the baselines that they have learned."""
    learned = learned_of(known or {})
    return RunMonitor(BaselineSource(store=learned, digest="m"), MonitorLimits(window=1, warm_up=3)), learned


def learned_of(known):
    learned = LearnedBaselines()
    for run, baseline in known.items():
        learned.save("m", run, baseline)
    return learned


@pytest.mark.parametrize(("name", "owner", "baseline_key"), [("a", "", "a"), ("a", "k", "k a"), (None, "k", None)])
def test_the_baseline_of_a_run_with_a_name_is_kept_once(name, owner, baseline_key):
    monitor, learned = learning()
    for i, score in enumerate((1.0, 3.0, 5.0, 99.0)):
        assert learned.n_changes == 0 or i == 3
        monitor.observe(name, i, [SAMPLE._replace(score=score)], 0.0, owner=owner)
    (run,) = monitor.runs.values()
    assert run.baseline.stats["score"] == BaselineStat(3.0, pytest.approx((8 / 3) ** 0.5), 3.0)
    assert learned.items() == ([] if baseline_key is None else [("m", baseline_key, run.baseline)])


def test_a_run_with_a_stored_baseline_learns_only_the_missing_numbers():
    known = Baseline({"score": BaselineStat(7.0, 2.0, 512.0)}, saturation=9.0)
    monitor, learned = learning({"k a": known})
    monitor.observe("a", 0, [SAMPLE], 0.0, owner="k")
    assert monitor.runs["a"].baseline is known
    monitor.add_sample_ids("a", [(1, 1), (2, 2), (3, 3)], 0.0, owner="k")
    monitor.observe("a", 0, [SAMPLE] * 2, 0.0, owner="k")
    baseline = monitor.runs["a"].baseline
    assert (baseline.stats["score"], baseline.stats["id_reuse"], baseline.saturation) == (
        BaselineStat(7.0, 2.0, 512.0),
        BaselineStat(0.0, 0.05, 3.0),
        9.0,
    )
    assert learned.items() == [("m", "k a", known)]


# -- another model ----------------------------------------------------------------------------------------------------


def test_a_new_run_is_measured_by_the_model_that_scored_it():
    monitor, other = monitor_of(), BaselineSource(components=("x", "y"))
    monitor.observe("b", 0, [SAMPLE._replace(components=(1.0, -2.0))], 0.0, source=other)
    run = monitor.runs["b"]
    assert (run.baseline_source, run.window["samples"], run.window.components()) == (
        other,
        1.0,
        [(1.0, 0.0), (-2.0, 0.0)],
    )


@pytest.mark.parametrize(
    ("components", "kept"), [(("x", "y"), [1.0, 0.0, 1.0, 0.0, 2.0, 4.0]), (("x", "z"), [0.0] * 6), (("x",), [0.0] * 3)]
)
def test_sums_of_parts_are_kept_where_another_model_has_the_same_parts(components, kept):
    one, known = BaselineSource(components=("x", "y")), Baseline({"score": BaselineStat(7.0, 2.0)})
    monitor = RunMonitor(one, MonitorLimits(window=1, warm_up=3))
    monitor.observe("a", 0, [SAMPLE._replace(components=(1.0, -2.0), audit=0.0)], 0.0)
    monitor.set_baseline_source(
        "a", BaselineSource(components=components, store=learned_of({"a": known}), digest="m"), 9.0
    )
    run = monitor.runs["a"]
    assert run.all_sums.sums[len(ENTRIES) :] == kept
    assert run.all_sums["samples"] == 1.0
    assert {running_sums.n_components for running_sums in (run.total, run.window, run.smooth)} == {len(components)}
    assert (run.total.sums, run.smooth.sums) == (RunningSums(n_components=len(components)).sums,) * 2
    assert (run.baseline, run.n_windows, run.model_changed_at, run.statistics) == (
        known,
        0,
        9.0,
        {},
    )


# -- prompts ----------------------------------------------------------------------------------------------------------


def test_the_error_of_a_mean_is_that_of_the_means_of_its_prompts():
    """Reference: the variance of a ratio over clusters, written out; for groups of one size it is that of the group means."""
    rng = Random(1)
    samples = [
        SAMPLE._replace(
            prompt_hash=i // 4, score=rng.gauss(i // 4 % 5, 0.1), spread=rng.random() if i % 3 else None,
            traits=(3.0, 0.0, rng.random()) if i % 2 else (), is_capped=rng.random() < 0.3,
        )
        for i in range(64)
    ]  # fmt: skip
    total = monitor_of(*samples, window=64).runs["a"].total
    assert total["prompts"] == 16.0
    groups = [samples[i : i + 4] for i in range(0, 64, 4)]
    means = [sum(each.score for each in group) / 4 for group in groups]
    assert total.error("score") == pytest.approx(stdev(means) / sqrt(16))
    for name, values in (
        ("capped", [[float(each.is_capped) for each in group] for group in groups]),
        ("spread", [[each.spread for each in group if each.spread is not None] for group in groups]),
        (TRAITS[2], [[each.traits[2] for each in group if each.traits] for group in groups]),
    ):
        n = sum(map(len, values))
        mean = sum(map(sum, values)) / n
        squares = sum((sum(each) - mean * len(each)) ** 2 for each in values)
        assert total.error(name) == pytest.approx(sqrt(squares * 16 / 15) / n)
    assert total.error("flat_groups") == 0.0


def test_the_samples_of_a_single_prompt_are_independent_of_each_other():
    samples = [SAMPLE._replace(score=float(i % 2)) for i in range(16)]
    total = monitor_of(*samples, window=16).runs["a"].total
    assert total.error("score") == pytest.approx(stdev(float(i % 2) for i in range(16)) / sqrt(16))


@pytest.mark.parametrize(("n_prompts", "closed"), [(1, [1024]), (7, [1024]), (8, [128] * 8), (128, [128] * 8)])
def test_a_window_has_the_prompts_of_groups_of_sixteen_or_eight_times_the_samples(n_prompts, closed):
    monitor, sizes = monitor_of(window=128), []
    for i in range(1024):
        monitor.observe("a", 0, [SAMPLE._replace(prompt_hash=i % n_prompts)], 0.0)
        run = monitor.runs["a"]
        if run.n_windows > len(sizes):
            sizes.append(run.total["samples"] - sum(sizes))
    assert sizes == closed


@pytest.mark.parametrize(("group", "windows"), [(1, 4), (8, 4), (16, 8), (64, 8)])
def test_a_baseline_is_learned_from_prompts(group, windows):
    monitor = monitor_of(window=128, warm_up=4)
    i = 0
    while not monitor.runs["a"].has_baseline:
        monitor.observe("a", 0, [SAMPLE._replace(prompt_hash=i // group)], 0.0)
        i += 1
    assert monitor.runs["a"].n_windows == windows
    assert monitor.runs["a"].total["prompts"] >= 64


def test_a_mean_trips_where_it_exceeds_its_threshold_by_three_standard_errors():
    wire = replace(next(wire for wire in WIRES if wire.name == "capped"), threshold=0.5)
    for group, trips in ((1, True), (8, False)):
        samples = [SAMPLE._replace(prompt_hash=i // group, is_capped=i // group % 10 < 7) for i in range(160)]
        monitor = monitor_of(*samples, window=160, wires=(wire,))
        run = monitor.runs["a"]
        error = sqrt(0.7 * 0.3 * group / 160 * (160 // group) / (160 // group - 1))
        assert run.statistics["capped"] == pytest.approx(0.7 - 3 * error)
        assert ("capped" in run.alerts) is trips


def test_groups_of_a_stationary_run_trip_nothing_though_their_means_wander():
    for group in (8, 16, 64):
        rng = Random(group)
        monitor = RunMonitor(BaselineSource(Baseline()), MonitorLimits())
        for step in range(120):
            samples = []
            for prompt in range(128 // group):
                level, length = rng.gauss(0, 0.7), rng.gauss(4, 0.5)
                samples += [
                    SAMPLE._replace(
                        prompt_hash=step * 128 + prompt, score=level + rng.gauss(0, 0.7), reward=rng.random(),
                        traits=(length + rng.gauss(0, 0.2), 0.0, abs(rng.gauss(0.1, 0.05)), *(0.0,) * (len(TRAITS) - 3)),
                    )
                    for _ in range(group)
                ]  # fmt: skip
            assert monitor.observe("a", step, samples, 0.0) == []


def test_the_audits_of_a_prompt_are_one_pair_of_means():
    audits = [(1, PromptMeans(2.0, 0.0)), (2, PromptMeans(5.0, 1.0)), (1, PromptMeans(4.0, 3.0))]
    assert prompt_means(audits) == [PromptMeans(3.0, 1.5), PromptMeans(5.0, 1.0)]


def test_a_start_with_many_audits_delays_no_alert_about_their_gap():
    """Every sample of the first windows is audited, and a tenth of later ones: the newest has its share of the gap all the same."""
    rng, monitor, warned = Random(3), RunMonitor(BaselineSource(Baseline()), MonitorLimits()), []
    for step in range(40):
        paid, share = 1.6 * (step >= 12), 1.0 if step < 10 else 0.1
        for i in range(128):
            quality = rng.gauss(0, 1)
            audit = 0.6 * quality + 0.8 * rng.gauss(0, 1) if i < 128 * share else None
            sample = SAMPLE._replace(prompt_hash=step * 128 + i, score=quality + paid, audit=audit)
            warned += [(a.wire, step) for a in monitor.observe("a", step, [sample], 0.0)]
    assert 12 <= dict(warned)["audit_gap"] <= 24


def test_one_late_audit_does_not_outweigh_those_before_it():
    monitor = RunMonitor(BaselineSource(Baseline()), MonitorLimits(window=128))
    for audits in (128,) * 10 + (0, 1):
        samples = [SAMPLE._replace(prompt_hash=i, audit=0.0 if i < audits else None) for i in range(128)]
        monitor.observe("a", 0, samples, 0.0)
    assert monitor.runs["a"].smooth["audited"] == pytest.approx(9 * 16 + 1)


@pytest.mark.parametrize("size", [1, 16, 128])
def test_a_score_that_leaves_the_judge_behind_trips_in_the_same_step_whatever_the_size_of_requests(size):
    rng = Random(2)
    monitor = RunMonitor(BaselineSource(Baseline()), MonitorLimits())
    warned = []
    for step in range(40):
        paid = max(0.0, step - 8) * 0.04
        samples = []
        for i in range(128):
            quality = rng.gauss(0, 1)
            audit = 0.6 * quality + 0.8 * rng.gauss(0, 1) - 0.7 * paid
            samples.append(SAMPLE._replace(prompt_hash=step * 128 + i, score=quality + 2.0 * paid, audit=audit))
        for i in range(0, 128, size):
            warned += [(a.wire, step) for a in monitor.observe("a", step, samples[i : i + size], 0.0)]
    steps = dict(reversed(warned))
    assert (steps["audit_drift"], steps["divergence"]) == (15, 22)

"""The run monitor: which wires trip, and which state of a run is kept."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from rewardserve.model.traits import TOKEN_TRAITS, TRAITS
from rewardserve.service.tripwires.alert import CANARY, VOTE, Alert
from rewardserve.service.tripwires.baseline import Baseline, BaselineSource, BaselineStat
from rewardserve.service.tripwires.features import SampleFeatures
from rewardserve.service.tripwires.run_monitor import RunMonitor
from rewardserve.service.tripwires.run_state import MonitorLimits
from rewardserve.service.tripwires.run_table import CANARIES, OTHER
from rewardserve.service.tripwires.running_sums import ENTRIES, RunningSums, count_of, is_signed
from rewardserve.service.tripwires.statistics import ExcessMean, Mean, RunSnapshot, ShareGrowth
from rewardserve.service.tripwires.wires import WIRES, AlertText, Wire

USUAL = {"length": BaselineStat(4.0, 0.5), "repetition": BaselineStat(0.05, 0.05), "missing_end": BaselineStat(0.0, 0.1),
         "flattery": BaselineStat(0.0, 0.5), "refusal": BaselineStat(0.0, 0.5), "markup": BaselineStat(0.1, 0.2),
         "foreign_script": BaselineStat(0.0, 0.1), "score": BaselineStat(0.0, 1.0), "spread": BaselineStat(0.3, 0.2),
         "distance": BaselineStat(-0.5, 0.5)}  # fmt: skip
REFERENCE = Baseline(USUAL, saturation=3.0)
LIMITS = MonitorLimits(window=16, warm_up=2)


def seen(rng=random, **fields):
    """A healthy sample, apart from the given fields."""
    traits = {name: (u.mean if (u := USUAL.get(name)) else 0.0) for name in TRAITS} | {
        name: fields.pop(name) for name in TRAITS if name in fields
    }
    known = {
        "prompt_hash": rng.getrandbits(60),
        "retry_key": None,
        "reward": rng.random(),
        "score": 0.0,
        "is_capped": False,
    }
    return SampleFeatures(**{**known, "traits": tuple(traits.values()), "text_digest": rng.getrandbits(60), **fields})


def healthy(n, **fields):
    return [seen(**fields) for _ in range(n)]


def watched(samples, limits=LIMITS, baseline=REFERENCE, name="run"):
    """What trips while these pass, a request of four at a time."""
    monitor = RunMonitor(BaselineSource(baseline), limits)
    found = [f for i in range(0, len(samples), 4) for f in monitor.observe(name, i, samples[i : i + 4], float(i))]
    return monitor, found


def names(found):
    return {alert.wire for alert in found}


def test_a_usual_stream_trips_nothing():
    monitor, found = watched(healthy(1000))
    assert found == []
    assert monitor.runs["run"].alerts == {}


@pytest.mark.parametrize(
    ("fields", "wire"),
    [
        ({"score": 2.0}, "score_shift"),
        ({"score": 3.5}, "saturation"),
        ({"is_capped": True}, "capped"),
        ({"length": 4.3}, "length_high"),
        ({"length": 3.5}, "length_low"),
        ({"missing_end": 1.0}, "missing_end"),
        ({"repetition": 0.2}, "repetition"),
        ({"refusal": 1.0}, "refusal"),
        ({"flattery": 1.0}, "flattery"),
        ({"markup": 0.5}, "markup"),
        ({"judge_injection": 1.0}, "judge_injection"),
        ({"empty_opener": 1.0}, "empty_opener"),
        ({"foreign_script": 0.5}, "foreign_script"),
        ({"control_tokens": 1.0}, "control_tokens"),
        ({"spread": 0.9}, "spread"),
        ({"distance": 0.1}, "distance"),
        ({"text_digest": 7, "prompt_hash": 5}, "duplicate_within_prompt"),
        ({"text_digest": 7}, "duplicate_across_prompts"),
        ({"audit": -1.0}, "audit_gap"),
        ({"is_honeypot_hit": True}, "honeypots"),
        ({"text_digest": 9, "prompt_hash": 6}, "probing"),
    ],
)
def test_each_wire_trips_on_its_exploit_with_the_step(fields, wire):
    monitor, found = watched(healthy(64, **({"audit": 1.0} if "audit" in fields else {})) + healthy(400, **fields))
    first = next(f for f in found if f.wire == wire)
    assert first.statistic > first.threshold
    assert first.since_step >= 64, "not before it began"
    assert monitor.runs["run"].alerts[wire].since == first.since_step
    assert VOTE not in names(found), "one wire is no vote"


def test_groups_without_a_difference_trip():
    monitor, found = watched([seen(reward=1.0, prompt_hash=i // 4) for i in range(400)])
    assert names(found) == {"flat_groups"}
    assert monitor.runs["run"].statistics["flat_groups"] == 1.0


def test_every_wire_is_named_in_that_table():
    tested = {mark.args[1][i][1] for mark in test_each_wire_trips_on_its_exploit_with_the_step.pytestmark
              for i in range(len(mark.args[1]))}  # fmt: skip
    elsewhere = {"divergence", "audit_drift", "component_share", "kl", "id_reuse", "flat_groups", "prompts_changed"}
    elsewhere |= {"duplicates_at_start"}
    elsewhere |= {"judge_contradicts", "artefact_share", "prompt_relevance", "mode_collapse"}
    elsewhere |= {"paid_novelty", "rejected_novelty"}
    assert tested | elsewhere == {wire.name for wire in WIRES}


def test_a_statistic_of_attribution_pages_stays_between_reports_and_goes_with_its_acknowledgement():
    monitor, _ = watched(healthy(160))
    run, source = monitor.runs["run"], monitor.baseline_source
    assert monitor.add_attributed("run", {"artefact_share": 0.1}, 1.0, source) == [], "at the threshold"
    assert monitor.add_attributed("run", {"artefact_share": 0.4}, 2.0, BaselineSource()) == [], "of another model"
    assert monitor.add_attributed("other run", {"artefact_share": 0.4}, 2.0, source) == []
    (alert,) = monitor.add_attributed("run", {"artefact_share": 0.4}, 3.0, source)
    assert (alert.wire, alert.severity, alert.statistic) == ("artefact_share", "page", 0.4)
    assert monitor.observe("run", 200, healthy(64), 4.0) == []
    assert run.statistics["artefact_share"] == 0.4
    assert monitor.acknowledge("run", "artefact_share")
    assert monitor.observe("run", 201, healthy(64), 5.0) == [], "not by the report that was acknowledged"
    assert [a.wire for a in monitor.add_attributed("run", {"artefact_share": 0.4}, 6.0, source)] == ["artefact_share"]
    run.change_model(BaselineSource(), 7.0)
    assert run.attributed == {}


def test_hidden_states_that_are_as_usual_trip_nothing_and_unlike_ones_are_a_note_without_a_vote():
    rng = random.Random(4)

    def states(n, mean):
        return [seen(rng, distance=rng.gauss(mean, 0.5)) for _ in range(n)]

    assert watched(states(2000, -0.5))[1] == []
    assert watched(states(2000, -0.3))[1] == [], "a little further"
    _, found = watched(states(64, -0.5) + states(400, 0.5) + healthy(400))
    assert [(f.wire, f.severity) for f in found] == [("distance", "note")]
    assert next(w for w in WIRES if w.name == "distance").weight(99.0) == 0


def test_the_wire_has_no_statistic_for_a_model_without_distances():
    monitor, _ = watched(healthy(400))
    assert "distance" not in monitor.runs["run"].statistics


def test_phrases_markup_and_saturation_have_no_vote():
    """Alone or together: taken out, they cost no page in time in the gym, and three pages on runs that never fall."""
    fields = {"score": 5.0, "flattery": 3.0, "refusal": 3.0, "markup": 2.0}
    _, found = watched(healthy(64) + healthy(400, **fields))
    assert {"flattery", "refusal", "markup"} <= {f.wire for f in found if f.severity == "warn"}
    assert {f.wire for f in found if f.severity == "note"} >= {"saturation"}
    assert VOTE not in names(found)


def test_several_wires_together_page():
    _, found = watched(healthy(64) + healthy(400, length=4.5, repetition=0.3, flattery=1.0))
    (page,) = [f for f in found if f.wire == VOTE]
    assert (page.severity, page.threshold) == ("page", 3)
    assert page.statistic >= 3.0


def test_a_wire_has_one_vote_beyond_its_threshold_two_beyond_twice_as_much_and_none_where_it_does_not_vote():
    wire = Wire("w", lambda view: None, 0.4, votes=True, text=AlertText("", "", ""))
    assert [wire.weight(s) for s in (None, -9.0, 0.4, 0.41, 0.8, 0.81)] == [0, 0, 0, 1, 1, 2]
    assert replace(wire, votes=False).weight(9.0) == 0


def test_divergence_pages_when_the_score_rises_and_the_audit_judge_falls():
    rng = random.Random(1)

    def drift(up, down):
        return [
            seen(rng, score=up * t + rng.gauss(0, 1), audit=down * t + rng.gauss(0, 1), prompt_hash=i)
            for i in range(1_600)
            for t in [max(0.0, i - 800) / 800]
        ]

    assert "divergence" in names(watched(drift(2.0, -2.0))[1])
    assert "divergence" not in names(watched(drift(2.0, 2.0))[1]), "healthy learning"
    assert "divergence" not in names(watched(drift(0.0, 0.0))[1])


def split(rng, n, a, b):
    """Samples of a reward that has two parts, with these standard deviations."""
    return [seen(rng, components=(rng.gauss(1, a), rng.gauss(-1, b))) for _ in range(n)]


@pytest.mark.parametrize(
    ("a", "b", "trips"), [(1.0, 2.0, False), (2.0, 4.0, False), (2.0, 1.0, True), (1.0, 0.1, True)]
)
def test_a_component_with_a_larger_share_raises_an_alert(a, b, trips):
    """At first the parts have a fifth and four fifths of the variance."""
    rng, monitor = random.Random(3), RunMonitor(BaselineSource(Baseline(), ("one", "two")), LIMITS)
    stream = split(rng, 64, 1.0, 2.0) + split(rng, 800, a, b)
    found = [f for i in range(0, len(stream), 4) for f in monitor.observe("run", i, stream[i : i + 4], 0.0)]
    assert ("component_share" in names(found)) is trips


def test_a_part_that_hardly_counted_may_count_twice_as_much():
    rng, monitor = random.Random(3), RunMonitor(BaselineSource(Baseline(), ("one", "two")), LIMITS)
    stream = split(rng, 64, 0.2, 1.0) + split(rng, 800, 0.35, 1.0)
    assert not [f for i in range(0, len(stream), 4) for f in monitor.observe("run", i, stream[i : i + 4], 0.0)]
    assert monitor.runs["run"].statistics["component_share"] > 1.0


def test_a_large_kl_raises_an_alert_where_the_trainer_sends_it():
    monitor = RunMonitor(BaselineSource(REFERENCE), LIMITS)
    for i in range(30):
        monitor.observe("near", i, healthy(8), 0.0, kl=6.2**2 - 0.1)
        monitor.observe("far", i, healthy(8), 0.0, kl=6.2**2 + 0.1)
        monitor.observe("silent", i, healthy(8), 0.0)
    assert {name: set(run.alerts) for name, run in monitor.runs.items()} == {
        "near": set(),
        "far": {"kl"},
        "silent": set(),
    }
    assert monitor.runs["far"].alerts["kl"].alert.statistic == pytest.approx((6.2**2 + 0.1) ** 0.5)


def test_an_id_of_different_samples_raises_an_alert_unless_the_baseline_has_such():
    def run_of(name, first, later):
        for i in range(60):
            monitor.add_sample_ids(name, [((i, j), (i, later(j) if i > 10 else first(j))) for j in range(8)], 0.0)
            monitor.add_sample_ids(name, [((i, j), (i, j)) for j in range(8)], 0.0)
            monitor.observe(name, i, healthy(8), 0.0)
        return set(monitor.runs[name].alerts)

    monitor = RunMonitor(BaselineSource(Baseline()), LIMITS)
    assert run_of("retries", first=lambda j: j, later=lambda j: j) == set(), "a retry is the same sample"
    assert run_of("id_reuse", first=lambda j: j, later=lambda j: j + 1) == {"id_reuse"}
    assert run_of("group ids", first=lambda j: j + 1, later=lambda j: j + 1) == set(), "it was so from the beginning"


def test_honeypots_are_no_share_before_there_are_enough_of_them():
    found = []
    monitor = RunMonitor(BaselineSource(REFERENCE), LIMITS)
    for i in range(200):
        bait = [seen(is_honeypot_hit=i % 10 == 0)] if i % 4 == 0 else []
        found += [(i, f.wire) for f in monitor.observe("run", i, healthy(15) + bait, 0.0)]
    ((first, wire),) = found
    assert wire == "honeypots"
    assert first // 4 + 1 == pytest.approx(50, abs=2), "when the fiftieth answer is in"


def test_evidence_of_a_flagged_sample_is_that_sample():
    samples = [seen(judge_injection=float(i % 10 == 0), evidence=f"{i:04x}") for i in range(400)]
    _, found = watched(samples)
    (judge_injection,) = [f for f in found if f.wire == "judge_injection"]
    assert judge_injection.evidence == tuple(f"{i:04x}" for i in range(0, judge_injection.since_step + 4, 10))


def test_a_run_is_blocked_from_its_alert_until_it_is_acknowledged():
    monitor = RunMonitor(BaselineSource(REFERENCE), replace(LIMITS, blocks=frozenset({"judge_injection", CANARY})))
    for i in range(30):
        monitor.observe("good", i, healthy(8), 0.0)
        monitor.observe("flatters", i, healthy(8, flattery=1.0), 0.0)
        monitor.observe("begs", i, healthy(8, judge_injection=1.0), 0.0)
    assert [monitor.blocked_by(name) for name in ("good", "flatters", "begs", None, "new")] == [
        None,
        None,
        "judge_injection",
        None,
        None,
    ]
    monitor.acknowledge("begs", "judge_injection")
    assert monitor.blocked_by("begs") is None
    for i in range(30):
        monitor.observe(None, i, healthy(8, judge_injection=1.0), 0.0)
    assert (monitor.blocked_by(None), monitor.runs[OTHER].alerts) == (None, {}), "they may be of several runs"
    monitor.report(CANARIES, Alert(CANARY, "page", 2.0, 1.0, None, ()), 0.0)
    assert [monitor.blocked_by(name) for name in ("good", "new")] == [CANARY] * 2, "the model is not what it was"


def test_no_client_run_gets_the_label_of_the_canaries():
    monitor = RunMonitor(BaselineSource(REFERENCE), LIMITS)
    monitor.observe(CANARIES, 0, healthy(3), 0.0)
    assert set(monitor.runs) == {OTHER}
    assert monitor.label_of(CANARIES) == OTHER


def test_what_has_tripped_stays_so_until_it_is_acknowledged_and_may_trip_again():
    monitor, found = watched(healthy(64) + healthy(200, flattery=2.0) + healthy(2000))
    assert [f.wire for f in found] == ["flattery"], "told once"
    assert "flattery" in monitor.runs["run"].alerts, "though all is well again"
    assert monitor.acknowledge("run", "flattery")
    assert not monitor.acknowledge("run", "flattery")
    assert not monitor.acknowledge("nobody", "flattery")
    again = [f for _ in range(50) for f in monitor.observe("run", 9, healthy(4, flattery=2.0), 0.0)]
    assert [f.wire for f in again] == ["flattery"]


def test_a_retry_counts_once_and_a_sample_without_a_retry_key_counts():
    monitor = RunMonitor(BaselineSource(REFERENCE), LIMITS)
    request = [seen(retry_key=i) for i in range(8)]
    for _ in range(3):
        monitor.observe("run", 1, request, 0.0)
    assert monitor.runs["run"].window["samples"] == 8
    monitor.observe("run", 1, healthy(4) * 2, 0.0)
    assert monitor.runs["run"].window["samples"] == 0, "sixteen close a window"
    assert monitor.runs["run"].total["samples"] == 16


def test_evidence_names_the_latest_samples():
    samples = [seen(flattery=3.0, evidence=f"{i:04x}") for i in range(200)]
    _, found = watched(samples)
    (flattery,) = [f for f in found if f.wire == "flattery"]
    last = flattery.since_step + 4
    assert flattery.evidence == tuple(f"{i:04x}" for i in range(last - LIMITS.evidence, last))


def test_a_run_without_a_reference_learns_one_from_its_beginning():
    monitor, found = watched(healthy(64, length=7.0) + healthy(400, length=9.0), baseline=Baseline())
    assert "length_high" in names(found)
    assert monitor.runs["run"].baseline.stats["length"].mean == pytest.approx(7.0)
    assert monitor.runs["run"].baseline.saturation == pytest.approx(3.09 * 0.1), (
        "levels were all 0: the least deviation"
    )


def test_a_reference_is_not_moved_by_what_a_run_does():
    monitor, _ = watched(healthy(4000, length=9.0))
    assert monitor.runs["run"].baseline.stats["length"] == USUAL["length"]


def ready(monitor, name, now, **owner):
    """A run with a learned baseline."""
    monitor.observe(name, 0, healthy(LIMITS.window * LIMITS.warm_up), now, **owner)


def test_runs_are_apart_bounded_and_forgotten():
    monitor = RunMonitor(BaselineSource(REFERENCE), replace(LIMITS, max_runs=5, expiry_s=100.0))
    for i in range(3):
        ready(monitor, f"run {i}", float(i))
    monitor.observe("late", 3, healthy(3), 3.0)
    assert set(monitor.runs) == {"run 0", "run 1", "run 2", OTHER}, (
        "three runs that train are not forgotten for a fourth"
    )
    assert monitor.runs[OTHER].window["samples"] == monitor.n_over_limit == 3
    monitor.observe(None, None, healthy(1), 105.0)
    monitor.observe("new", None, healthy(1), 105.0)
    assert {"new", OTHER} <= set(monitor.runs)
    assert "run 0" not in monitor.runs


def test_a_new_run_takes_the_place_of_one_that_was_silent_for_long_then_of_one_that_has_shown_little():
    limits = replace(LIMITS, max_runs=5, protected_s=50.0)
    monitor = RunMonitor(BaselineSource(REFERENCE), limits)
    for i in range(3):
        ready(monitor, f"run {i}", 10.0 * i)
    monitor.observe("a", 0, healthy(9), 51.5)
    assert set(monitor.runs) == {"run 1", "run 2", "a"}, "run 0 was silent for 51.5 s"
    monitor.observe("b", 0, healthy(2), 51.6)
    monitor.observe("c", 0, healthy(2), 51.7)
    assert {"run 1", "run 2"} <= set(monitor.runs)
    ready(monitor, "run 1", 60.0)
    ready(monitor, "run 2", 60.0)
    monitor.observe("d", 0, healthy(1), 61.0)
    assert set(monitor.runs) == {"run 1", "run 2", "d"}


def test_three_hundred_names_of_one_key_take_no_place_from_a_run_of_another():
    monitor = RunMonitor(BaselineSource(REFERENCE), LIMITS)
    monitor.observe("first", 0, healthy(1), 0.0, owner="victim")
    for i in range(300):
        monitor.observe(f"junk {i}", 0, healthy(1), 0.0, owner="flood")
    monitor.observe("second", 0, healthy(5), 1.0, owner="victim")
    assert {run.name: run.owner for run in monitor.runs.values() if run.owner == "victim"} == dict.fromkeys(
        ("first", "second"), "victim"
    )
    assert len(monitor.runs) <= LIMITS.max_runs
    for i in range(40):  # now with runs that count as much as any
        ready(monitor, f"junk {i}", 2.0, owner="flood")
    monitor.observe("third", 0, healthy(5), 3.0, owner="victim")
    assert sum(run.owner == "victim" for run in monitor.runs.values()) == 3
    assert len(monitor._table._labels) <= LIMITS.max_runs, "a deleted run leaves no label"


def test_runs_of_two_keys_are_two_runs_whatever_they_are_called():
    monitor = RunMonitor(BaselineSource(REFERENCE), replace(LIMITS, blocks=frozenset({"judge_injection"})))
    monitor.observe("ppo", 0, healthy(4), 0.0, owner="a")
    for i in range(20):
        monitor.observe("ppo", i, healthy(8, judge_injection=1.0), 0.0, owner="b")
        monitor.observe(None, i, healthy(8, judge_injection=1.0), 0.0, owner="b")
    monitor.observe(None, 0, healthy(4), 0.0, owner="a")
    assert set(monitor.runs) == {"ppo", "ppo@b", "other@a", "other@b"}
    assert [monitor.blocked_by(name, owner) for owner in "ab" for name in ("ppo", None)] == [
        None,
        None,
        "judge_injection",
        "judge_injection",
    ]
    assert monitor.label_of("ppo", "b") == "ppo@b"
    assert monitor.acknowledge("ppo@b", "judge_injection")
    assert not monitor.acknowledge("ppo", "judge_injection")
    monitor.observe("ppo@b", 0, healthy(1), 0.0, owner="c")
    assert monitor.label_of("ppo@b", "c") not in ("ppo", "ppo@b"), "no name makes a run pass for another's"


def test_a_block_outlives_the_place_of_its_run_and_its_silence():
    monitor = RunMonitor(
        BaselineSource(REFERENCE), replace(LIMITS, max_runs=5, expiry_s=100.0, blocks=frozenset({"judge_injection"}))
    )
    for i in range(20):
        monitor.observe("begs", i, healthy(8, judge_injection=1.0), 0.0, owner="a")
    for i in range(40):
        monitor.observe(f"junk {i}", 0, healthy(1), 200.0 + i, owner="a")
    assert "begs" not in monitor.runs
    assert "judge_injection" in monitor.archived["begs"].alerts
    assert monitor.blocked_by("begs", "a") == "judge_injection"
    monitor.observe("begs", 21, healthy(8), 300.0, owner="a")  # in flight at the time of the alert
    assert monitor.blocked_by("begs", "a") == "judge_injection"
    assert monitor.acknowledge("begs", "judge_injection")
    assert monitor.blocked_by("begs", "a") is None


def test_a_key_that_may_send_certain_runs_has_no_other_name_to_go_on_under():
    monitor = RunMonitor(BaselineSource(REFERENCE), replace(LIMITS, blocks=frozenset({"judge_injection"})))
    monitor.observe("sweep-2", 0, healthy(8), 0.0, owner="a")
    for i in range(20):
        monitor.observe("sweep-1", i, healthy(8, judge_injection=1.0), 0.0, owner="a")
    names_of_a = ("sweep-1", "sweep-2", "sweep-3", None)
    assert [monitor.blocked_by(n, "a", is_bound=True) for n in names_of_a] == [
        "judge_injection",
        None,
        "judge_injection",
        "judge_injection",
    ]
    assert [monitor.blocked_by(n, "a") for n in names_of_a] == ["judge_injection", None, None, None], (
        "without that a name is enough"
    )
    assert [monitor.blocked_by(n, "b", is_bound=True) for n in names_of_a] == [None] * 4


def test_what_is_kept_of_a_run_does_not_grow():
    limits = replace(LIMITS, remembered_texts=50)
    monitor, _ = watched(
        [seen(retry_key=i, audit=0.0, evidence="e", judge_injection=1.0, is_honeypot_hit=True) for i in range(3000)],
        limits,
    )
    monitor.add_sample_ids("run", [(i, i) for i in range(3000)], 0.0)
    run = monitor.runs["run"]
    assert (len(run.texts), len(run.keys), len(run.ids), len(run.recent_evidence)) == (
        50,
        50,
        100,
        limits.evidence,
    )
    assert ({len(shown) for shown in run.wire_evidence.values()}, len(run.honeypots)) == ({limits.evidence}, 200)


# -- replicas ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_sums_of_four_replicas_are_those_of_one(seed):
    """Routed at random, request by request, the sums of each window add up; so do all that is computed of them."""
    rng = random.Random(seed)
    limits = replace(LIMITS, window=10**9)
    stream = [[seen(rng, score=rng.gauss(0, 1), length=rng.gauss(4, 1), spread=rng.random(), distance=rng.gauss(0, 1),
                    audit=rng.gauss(0, 1), flattery=float(rng.random() < 0.2), components=(rng.gauss(0, 1), rng.gauss(0, 2)))
               for _ in range(8)] for _ in range(200)]  # fmt: skip
    one, *four = (RunMonitor(BaselineSource(REFERENCE, ("a", "b")), limits) for _ in range(5))
    for i, request in enumerate(stream):
        one.observe("run", i, request, 0.0)
        rng.choice(four).observe("run", i, request, 0.0)
    whole = one.runs["run"].window
    merged = sum((monitor.runs["run"].window for monitor in four), start=RunningSums(n_components=2))
    assert merged.sums == pytest.approx(whole.sums, rel=1e-12)
    views = [RunSnapshot(running_sums, REFERENCE) for running_sums in (whole, merged)]
    for wire in WIRES:
        a, b = (wire.statistic(view) for view in views)
        assert a == pytest.approx(b) if a is not None else b is None


def test_sums_only_grow():
    rng = random.Random(2)
    monitor = RunMonitor(BaselineSource(REFERENCE, ("a", "b")), replace(LIMITS, window=10**9))
    before = RunningSums(n_components=2)
    for _ in range(300):
        components = (rng.gauss(0, 1), rng.gauss(0, 1))
        numbers = {"score": rng.gauss(0, 3), "audit": rng.gauss(0, 3), "spread": 0.1, "distance": rng.gauss(0, 3)}
        monitor.observe("run", 0, [seen(rng, **numbers, components=components)], 0.0)
        after = RunningSums(monitor.runs["run"].window.sums)
        assert all(new >= old for new, old in zip(after.sums, before.sums, strict=True))
        before = after


def test_means_are_over_the_samples_that_have_a_number():
    known = {"samples": 10, "responses": 10, "texts": 4, "length": 20, "flattery": 2, "score_positive": 3, "score_negative": 8,
             "distances": 2, "distance_positive": 1, "distance_negative": 4, "distance_squared": 8.5}  # fmt: skip
    running_sums = RunningSums(known.get(name, 0.0) for name in ENTRIES)
    assert (running_sums.mean("length"), running_sums.mean("flattery"), running_sums.mean("score")) == (2.0, 0.5, -0.5)
    assert (running_sums.mean("distance"), running_sums.std("distance")) == (-1.5, pytest.approx(2**0.5))
    assert running_sums.mean("audit") is None
    assert len(running_sums.sums) == len(ENTRIES) == len(set(ENTRIES))


def test_equal_texts_of_the_start_are_a_note_and_a_warning_where_they_become_more():
    rng = random.Random(6)

    def policy(n, share, n_texts=6):
        """A share of its responses is one of some texts, as are refusals."""
        return [seen(rng, text_digest=rng.randrange(n_texts)) if rng.random() < share else seen(rng) for _ in range(n)]

    limits = MonitorLimits(window=128)
    _, found = watched(policy(6_000, 0.35), limits)
    assert names(found) == {"duplicates_at_start"}, "no client probes the model"
    note = next(alert for alert in found if alert.wire == "duplicates_at_start")
    assert (note.severity, note.since_step) == ("note", 508)
    assert 0.2 < note.statistic < 0.35
    _, found = watched(policy(1_000, 0.35) + policy(2_000, 0.0), limits)
    assert "duplicate_across_prompts" not in names(found), "refusals vanish"
    _, found = watched(policy(1_000, 0.1) + policy(2_000, 0.3), limits)
    assert 1_000 <= next(alert.since_step for alert in found if alert.wire == "duplicate_across_prompts") < 1_800
    _, found = watched(healthy(1_000) + policy(1_000, 0.1, 20), limits)
    assert names(found) == {"duplicate_across_prompts"}


def test_equal_texts_do_not_grow_with_the_number_of_texts_that_are_remembered():
    """A policy of three thousand texts that does not change repeats more of all its earlier texts, and no more of the latest."""
    rng = random.Random(7)
    monitor, found = watched(
        [seen(rng, text_digest=rng.randrange(3_000)) for _ in range(8_000)], MonitorLimits(window=128)
    )
    assert "duplicate_across_prompts" not in names(found)
    assert monitor.runs["run"].smooth.mean("duplicate_across_prompts") == pytest.approx(192 / 3_000, abs=0.03)


def test_samples_without_text_say_nothing_of_texts():
    ids_only = [replace_traits(s) for s in healthy(100)]
    monitor, _ = watched(ids_only)
    run = monitor.runs["run"]
    assert (run.total["samples"], run.total["texts"]) == (96, 0)
    assert "flattery" not in run.statistics
    assert "length_high" in run.statistics


def replace_traits(sample):
    return sample._replace(traits=sample.traits[: len(TOKEN_TRAITS)], text_digest=None)


def test_a_run_beyond_the_limit_is_known_by_the_name_it_is_kept_under():
    monitor = RunMonitor(BaselineSource(REFERENCE), replace(LIMITS, max_runs=4))
    for i in range(5):
        ready(monitor, f"run {i}", 0.0)
    assert [monitor.label_of(name) for name in ("run 0", "run 1", "run 4", None)] == ["run 0", "run 1", OTHER, OTHER]
    monitor.add_audit("run 4", 1, 1.0, 2.0, 0.0)
    assert (monitor.runs[OTHER].window["audited"], monitor.runs["run 0"].window["audited"]) == (1, 0)


@pytest.mark.parametrize(
    ("fields", "wire"),
    [
        ({"flattery": 2.0}, "flattery"),
        ({"is_honeypot_hit": True}, "honeypots"),
        ({"score": 9.0, "audit": -5.0}, "audit_gap"),
    ],
)
def test_one_acknowledgement_is_enough_where_the_exploit_has_ended(fields, wire):
    start = healthy(64, **({"audit": 0.0} if "audit" in fields else {}))
    monitor, found = watched(start + healthy(160, **fields))
    assert wire in names(found)
    for active in list(monitor.runs["run"].alerts):
        assert monitor.acknowledge("run", active)
    baseline = monitor.runs["run"].baseline
    later = [f for i in range(40) for f in monitor.observe("run", 300 + i, healthy(16, is_honeypot_hit=False), 0.0)]
    assert later == []
    assert monitor.runs["run"].baseline is baseline
    again = [f for i in range(20) for f in monitor.observe("run", 400 + i, healthy(16, **fields), 0.0)]
    assert wire in names(again)


def test_the_drift_of_the_judge_bets_again_after_its_acknowledgement_alone():
    rng, monitor = random.Random(3), RunMonitor(BaselineSource(REFERENCE), MonitorLimits(window=64))

    def send(n, behind):
        found = []
        for _ in range(n):
            samples = [seen(rng, score=0.0, audit=rng.gauss(-behind, 1)) for _ in range(64)]
            found += monitor.observe("run", 0, samples, 0.0)
        return [f.wire for f in found if f.wire == "audit_drift"]

    assert send(8, 0.0) == []
    assert send(20, 2.0) == ["audit_drift"]
    monitor.acknowledge("run", "audit_gap")
    assert monitor.runs["run"].audit_drift.e_value > 1e3
    monitor.acknowledge("run", "audit_drift")
    assert monitor.runs["run"].audit_drift.e_value == 1.0
    assert send(10, 0.0) == []
    assert send(10, 2.0) == ["audit_drift"]


def test_every_trip_is_counted():
    monitor, _ = watched(healthy(64) + healthy(200, flattery=2.0))
    monitor.acknowledge("run", "flattery")
    for _ in range(10):
        monitor.observe("run", 0, healthy(16, flattery=2.0), 0.0)
    assert monitor.runs["run"].trips["flattery"] == 2


# -- another model ----------------------------------------------------------------------------------------------------


def test_a_run_with_another_model_learns_a_new_baseline_and_keeps_alerts_and_sums():
    rng, one, two = random.Random(5), BaselineSource(), BaselineSource()
    monitor = RunMonitor(one, LIMITS)
    for i in range(20):
        monitor.set_baseline_source("run", one, 0.0)
        monitor.observe("run", i, [seen(rng, score=rng.gauss(0, 1)) for _ in range(8)], 0.0, source=one)
    monitor.report("run", Alert("judge_injection", "page", 1.0, 0.5, 3, ()), 0.0)
    before = monitor.runs["run"].all_sums["samples"]
    old = monitor.runs["run"].baseline
    monitor.set_baseline_source("run", two, 7.0)
    assert monitor.runs["run"].model_changed_at == 7.0
    for i in range(20, 40):
        monitor.set_baseline_source("run", two, 8.0)
        found = monitor.observe("run", i, [seen(rng, score=rng.gauss(9, 1)) for _ in range(8)], 8.0, source=two)
        assert "score_shift" not in names(found)
    run = monitor.runs["run"]
    assert run.all_sums["samples"] == before + 160
    assert set(run.alerts) == {"judge_injection"}
    assert run.baseline.stats["score"].mean == pytest.approx(9.0, abs=0.5)
    assert old.stats["score"].mean == pytest.approx(0.0, abs=0.5)


def test_what_was_on_its_way_when_the_model_changed_is_left_out():
    one, two = BaselineSource(), BaselineSource()
    monitor = RunMonitor(one, LIMITS)
    monitor.observe("run", 1, healthy(8), 0.0, source=one)
    monitor.set_baseline_source("run", two, 1.0)
    monitor.observe("run", 1, healthy(8), 1.0, source=one)
    assert monitor.runs["run"].all_sums["samples"] == 8
    monitor.observe("run", 1, healthy(8), 1.0, source=two)
    assert monitor.runs["run"].all_sums["samples"] == 16


@pytest.mark.parametrize("components", [("a", "b"), ("c",), ()])
def test_sums_never_fall_when_a_reward_is_made_of_other_parts(components):
    rng, one, two = random.Random(5), BaselineSource(components=("a", "b")), BaselineSource(components=components)
    monitor = RunMonitor(one, LIMITS)
    monitor.observe("run", 1, [seen(rng, components=(1.0, 2.0)) for _ in range(40)], 0.0, source=one)
    before = monitor.runs["run"].all_sums
    monitor.set_baseline_source("run", two, 1.0)
    after = monitor.runs["run"].all_sums
    assert after.n_components == len(components)
    assert after.sums[: len(ENTRIES)] == before.sums[: len(ENTRIES)]
    monitor.observe("run", 2, [seen(rng, components=(1.0,) * len(components)) for _ in range(40)], 1.0, source=two)
    assert monitor.runs["run"].all_sums["samples"] == 80


def test_a_run_without_samples_has_no_model_change():
    monitor = RunMonitor(BaselineSource(), LIMITS)
    two = BaselineSource()
    monitor.set_baseline_source("run", two, 1.0)
    assert monitor.runs == {}
    monitor.observe("run", 1, healthy(8), 1.0, source=two)
    assert monitor.runs["run"].model_changed_at is None


def lonely(n, of, known):
    """Sums of many samples, of which only `n` have the number, each of them as large as can be."""
    sums = dict.fromkeys(ENTRIES, 0.0) | {"samples": 2000.0, count_of(of): float(n)}
    for name in known:
        sums[name] = float(n) * 50.0 if is_signed(name.rpartition("_")[0]) or name in TRAITS else float(n)
    return RunningSums(sums[name] for name in ENTRIES)


ONE = {
    "flat_groups": ("flat_groups", ["flat_groups"]),
    **{name: (name, [name]) for name in ("length", "missing_end", "repetition", "refusal", "flattery", "markup")},
    **{
        name: (name, [name])
        for name in (
            "judge_injection",
            "empty_opener",
            "control_tokens",
            "foreign_script",
            "duplicate_within_prompt",
            "duplicate_across_prompts",
            "probing",
            "spread",
        )
    },
    "distance": ("distance", ["distance_positive"]),
}


@pytest.mark.parametrize("name", ONE)
def test_one_sample_that_alone_has_a_number_trips_no_wire(name):
    of, known = ONE[name]
    numbers = *TRAITS, "score", "spread", "distance", "duplicate_across_prompts"
    usual = {each: BaselineStat(0.0, 0.1) for each in numbers}
    for n in (1, 2, 5):
        view = RunSnapshot(lonely(n, of, known), Baseline(usual, saturation=3.0))
        over = [w.name for w in WIRES if (s := w.statistic(view)) is not None and s > w.threshold]
        assert over == []
    many = RunSnapshot(lonely(1000, of, known), Baseline(usual, saturation=3.0))
    assert any((w.statistic(many) or 0.0) > w.threshold for w in WIRES)


def test_one_in_so_many_is_never_beyond_a_threshold_of_the_shipped_shares():
    for wire in WIRES:
        if isinstance(wire.statistic, Mean | ExcessMean | ShareGrowth):
            assert 1 / wire.statistic.min_samples <= wire.threshold


def test_a_run_whose_responses_are_unknown_but_for_one_is_not_paged_for_that_one():
    rng = random.Random(5)
    monitor = RunMonitor(BaselineSource(REFERENCE), LIMITS)
    unknown = [seen(rng)._replace(traits=(), text_digest=None) for _ in range(1500)]
    telling = seen(
        rng, **dict.fromkeys(("judge_injection", "empty_opener", "control_tokens", "flattery", "refusal"), 1.0)
    )
    found = []
    for n in range(0, 1500, 10):
        found += monitor.observe("run", n, [*unknown[n : n + 10], *([telling] if n == 700 else [])], 0.0)
    assert [alert.wire for alert in found if alert.wire != "score_shift"] == []

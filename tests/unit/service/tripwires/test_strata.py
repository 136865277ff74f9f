"""Tasks of a run: each has its own baseline, and samples are compared within tasks."""

from __future__ import annotations

from math import sqrt
from random import Random

import pytest

from rewardserve.model.traits import TRAITS
from rewardserve.service.tripwires.alert import VOTE
from rewardserve.service.tripwires.baseline import Baseline, BaselineSource, BaselineStat, LearnedBaselines, component
from rewardserve.service.tripwires.features import SampleFeatures
from rewardserve.service.tripwires.run_monitor import RunMonitor
from rewardserve.service.tripwires.run_state import MonitorLimits, Run, task_key
from rewardserve.service.tripwires.running_sums import RunningSums
from rewardserve.service.tripwires.strata import MAX_TASKS, AuditGapMean, Stratum, audit_gap_growth, mixed_baseline

LENGTHS = {"chat": 3.0, "code": 6.0, "math": 4.5}


def sample(rng, task, shift=0.0, audit=False, **traits):
    """A sample of a task with its own length and score. `shift`: of an exploit, in both."""
    values = {"length": rng.gauss(LENGTHS.get(task, 5.0) + shift, 0.5), **traits}
    score = rng.gauss(LENGTHS.get(task, 5.0) / 3 + 2.0 * shift, 1.0)
    return SampleFeatures(
        prompt_hash=rng.getrandbits(60), retry_key=None, reward=rng.random(), score=score, is_capped=False,
        traits=tuple(values.get(name, 0.0) for name in TRAITS), text_digest=rng.getrandbits(60), task=task,
        audit=0.7 * score + rng.gauss(0.0, 1.0) if audit else None,
    )  # fmt: skip


def stream(seed, n_steps, mix, shift=lambda task, step: 0.0, batch=128, **fields):
    """Steps of samples; `mix`: the shares of the tasks at a step."""
    rng = Random(seed)
    steps = []
    for step in range(n_steps):
        tasks = rng.choices(*zip(*mix(step).items(), strict=True), k=batch)
        steps.append([sample(rng, task, shift(task, step), **fields) for task in tasks])
    return steps


def watched(steps, names=True, size=128, **limits):
    """The monitor after a stream in requests of this size, and the alerts with their steps."""
    monitor, alerts = RunMonitor(BaselineSource(), MonitorLimits(**limits)), []
    for i, step in enumerate(steps):
        samples = step if names else [each._replace(task="") for each in step]
        for at in range(0, len(samples), size):
            found = monitor.observe("a", i, samples[at : at + size], float(i))
            alerts += [(i, each.wire, each.task) for each in found if each.severity != "note"]
    return monitor, alerts


def curriculum(step):
    """From chat to code, and to a task that begins in the middle."""
    late = max(0.0, step / 30 - 0.5)
    return {"chat": max(0.0, 1.0 - step / 30), "code": min(1.0, step / 30), "math": late}


def test_the_gap_of_a_task_counts_when_its_start_is_known():
    rng = Random(4)
    steps = [[sample(rng, "chat", audit=True) for _ in range(128)] for _ in range(12)]
    steps += [[sample(rng, "code")._replace(score=2.0, audit=0.0) for _ in range(64)] for _ in range(3)]
    monitor, _ = watched(steps, size=64)
    run = monitor.runs["a"]
    assert [each.has_baseline for each in run.strata.values()] == [True, False]
    assert run.compared["audited"] < run.smooth["audited"]
    before = watched(steps[:12], size=64)[0].runs["a"].statistics["audit_gap"]
    assert run.statistics["audit_gap"] == pytest.approx(before, abs=0.02)


# -- what trips -------------------------------------------------------------------------------------------------------


def test_a_curriculum_between_named_tasks_raises_no_alert_and_one_between_unnamed_ones_does():
    steps = stream(1, 60, curriculum, audit=True)
    assert watched(steps)[1] == []
    assert "length_high" in {wire for _, wire, _ in watched(steps, names=False)[1]}


@pytest.mark.parametrize("mix", [lambda _: {"chat": 0.5, "code": 0.5}, curriculum])
def test_an_exploit_in_all_tasks_is_seen(mix):
    steps = stream(2, 60, mix, lambda _, step: 0.02 * max(0, step - 10))
    assert (0, "length_high", "") < min(watched(steps)[1]) < (50, "", "")


def test_an_exploit_in_all_tasks_is_seen_as_early_as_without_names_where_the_shares_stay():
    def mix(_):
        return {"chat": 0.5, "math": 0.5}

    steps = stream(3, 60, mix, lambda _, step: 0.02 * max(0, step - 10))
    named, unnamed = (next(i for i, wire, _ in watched(steps, n)[1] if wire == "length_high") for n in (True, False))
    assert named <= unnamed


def test_an_exploit_in_one_task_is_seen_with_its_name():
    steps = stream(4, 80, lambda _: {"chat": 0.85, "code": 0.15}, lambda task, step: (task == "code") * 0.02 * step)
    alerts = watched(steps)[1]
    assert ("length_high", "code") in {(wire, task) for _, wire, task in alerts}
    assert "length_high" not in {wire for _, wire, _ in watched(steps, names=False)[1]}


def test_votes_are_those_of_one_comparison():
    """Two wires in two different tasks are not two votes for one exploit."""

    def seen_in(both):
        rng = Random(5)
        steps = []
        for step in range(60):
            tasks = rng.choices(("chat", "code"), k=128)
            exploit = {"length": 6.6, "repetition": 0.5} if step > 12 else {}
            by_task = {"code": exploit if both else {"length": exploit.get("length", 6.0)}, "chat": {}}
            if not both and step > 12:
                by_task["chat"] = {"repetition": 0.5}
            steps.append([sample(rng, task, **by_task[task]) for task in tasks])
        return watched(steps, votes_for_a_page=4)[0].runs["a"].statistics[VOTE]

    assert seen_in(both=True) >= 3.0 > 2.0


@pytest.mark.parametrize("seed", range(3))
def test_requests_of_one_sixteen_and_all_samples_raise_the_same_alerts_at_the_same_steps(seed):
    steps = stream(seed, 60, curriculum, lambda task, step: (task == "code") * 0.02 * step, audit=True)
    one, sixteen, whole = (watched(steps, size=size)[1] for size in (1, 16, 128))
    assert one == sixteen == whole != []


# -- learning ---------------------------------------------------------------------------------------------------------


def test_a_rare_large_value_that_a_small_task_lacked_at_first_is_no_large_shift():
    """The task has the standard deviation within the first strata of the run."""
    rng = Random(16)

    def rare(task):
        return sample(rng, task, repetition=0.6 if rng.random() < 0.04 else 0.0)

    calm = [[sample(rng, "code") for _ in range(20)] + [rare("chat") for _ in range(108)] for _ in range(4)]
    later = [[rare("code") for _ in range(20)] + [rare("chat") for _ in range(108)] for _ in range(60)]
    monitor, alerts = watched(calm + later)
    std = monitor.runs["a"].strata["code"].baseline.stats["repetition"].std
    assert std == monitor.runs["a"].run_wide.stats["repetition"].std > 0.08
    assert alerts == []


def test_a_task_that_begins_later_learns_its_baseline_first_and_says_so():
    steps = stream(6, 30, lambda step: {"chat": 1.0} if step < 20 else {"code": 1.0})
    monitor = RunMonitor(BaselineSource(), MonitorLimits())
    states = []
    for i, step in enumerate(steps):
        monitor.observe("a", i, step, float(i))
        states.append({key: each.has_baseline for key, each in monitor.runs["a"].strata.items()})
    assert states[2:4] == [{"chat": False}, {"chat": True}]
    assert states[20:22] == [{"chat": True, "code": False}, {"chat": True, "code": True}], "256 samples"
    assert monitor.runs["a"].strata["code"].first_step == 20
    assert monitor.runs["a"].strata["code"].baseline.stats["length"].mean == pytest.approx(6.0, abs=0.1)


def test_samples_of_a_task_that_learns_are_compared_with_nothing():
    rng = Random(7)
    chat = stream(7, 20, lambda _: {"chat": 1.0})
    mixed = [[*each[:100], *(sample(rng, "code") for _ in range(4))] for each in stream(8, 40, lambda _: {"chat": 1.0})]
    monitor, alerts = watched(chat + mixed)
    assert not monitor.runs["a"].strata["code"].has_baseline
    assert alerts == []


def test_further_tasks_share_one_that_is_named():
    rng = Random(9)
    samples = [sample(rng, f"task {i % 40}") for i in range(400)]
    monitor = RunMonitor(BaselineSource(), MonitorLimits())
    for i in range(10):
        monitor.observe("a", i, samples, 0.0)
    strata = monitor.runs["a"].strata
    assert list(strata) == [*(f"task {i}" for i in range(MAX_TASKS - 1)), "other"]
    assert strata["other"].total["samples"] + strata["other"].window["samples"] == 4000 * 25 / 40


def test_the_sums_of_a_run_are_those_of_its_tasks():
    steps = stream(10, 12, curriculum, audit=True)
    named, unnamed = (watched(steps, names)[0].runs["a"] for names in (True, False))
    for name in ("samples", "length", "length_squared", "score_positive", "audited", "groups"):
        assert named.all_sums[name] == pytest.approx(unnamed.all_sums[name])
        assert named.smooth[name] == pytest.approx(unnamed.smooth[name])


def test_baselines_of_tasks_are_stored_and_a_run_goes_on_with_them():
    store = LearnedBaselines()
    source = BaselineSource(store=store)
    monitor = RunMonitor(source, MonitorLimits())
    for i, step in enumerate(stream(11, 12, lambda _: {"chat": 1.0, "code": 1.0, "": 1.0})):
        monitor.observe("a", i, step, 0.0, owner="key")
    assert {run for _, run, _ in store.items()} == {"key a", task_key("key a", "chat"), task_key("key a", "code")}
    known = {run: baseline for _, run, baseline in store.items()}
    again = RunMonitor(BaselineSource(store=store), MonitorLimits())
    again.observe("a", 0, stream(12, 1, lambda _: {"code": 1.0})[0], 0.0, owner="key")
    assert (
        again.runs["a@key" if "a@key" in again.runs else "a"].strata["code"].baseline
        is known[task_key("key a", "code")]
    )


def test_the_baseline_of_the_model_is_not_that_of_a_task():
    default = Baseline({"length": BaselineStat(1.0, 0.5)})
    monitor = RunMonitor(BaselineSource(default), MonitorLimits())
    rng = Random(13)
    monitor.observe("a", 0, [sample(rng, "chat"), sample(rng, "")], 0.0)
    assert [each.baseline for each in monitor.runs["a"].strata.values()] == [Baseline(), default]


def test_an_acknowledged_wire_begins_again_in_every_task():
    steps = stream(14, 60, lambda _: {"chat": 0.8, "code": 0.2}, lambda task, step: (task == "code") * 0.02 * step)
    monitor, alerts = watched(steps)
    assert alerts
    assert monitor.acknowledge("a", alerts[0][1])
    assert {each.smooth["samples"] for each in monitor.runs["a"].strata.values()} == {0.0}


def test_the_audits_of_the_tasks_are_those_of_the_run_where_they_become_fewer():
    steps = stream(16, 12, curriculum, audit=True)
    steps += [[each._replace(audit=None) if i % 10 else each for i, each in enumerate(step)] for step in steps]
    run = watched(steps)[0].runs["a"]
    assert len(run.strata) > 1
    assert sum(each.smooth["audited"] for each in run.strata.values()) == pytest.approx(run.smooth["audited"])


def test_alert_rules_get_a_baseline_that_a_new_task_does_not_shift():
    """They see the sums of all samples: also of a task that still learns, whose exported baseline is that of its samples so far."""
    steps = stream(15, 21, lambda step: {"chat": 1.0} if step < 20 else {"chat": 0.5, "code": 0.5})
    run = watched(steps)[0].runs["a"]
    assert not run.strata["code"].has_baseline
    assert run.smooth.mean("length") == pytest.approx(run.exported_baseline.stats["length"].mean, abs=0.06)
    assert run.baseline.stats["length"].mean == pytest.approx(3.0, abs=0.05)


# -- the formulas -----------------------------------------------------------------------------------------------------


def stratum(task, n, length, n_prompts=64.0, audits=None):
    smooth = RunningSums(n_components=1)
    for name, value in {"samples": n, "responses": n, "audited": n}.items():
        smooth.add(name, value)
    made = Stratum.new(task, 0, Baseline({"length": length, component(0): length}, saturation=length.mean), 1)
    made.smooth, made.has_baseline, made.n_prompts, made.audits = smooth, True, n_prompts, audits
    return made


def test_the_baseline_of_several_tasks_is_mixed_as_the_latest_samples_are():
    one, two = (
        stratum("a", 30.0, BaselineStat(1.0, 0.5, 100.0, 0.1)),
        stratum("b", 10.0, BaselineStat(5.0, 1.0, 300.0, 0.2)),
    )
    mixed = mixed_baseline([one, two], Baseline({"id_reuse": BaselineStat(0.1, 0.2)}))
    length, whole = mixed.stats["length"], mixed.stats[component(0)]
    assert length == BaselineStat(2.0, pytest.approx(sqrt(0.4375)), 400.0, pytest.approx(sqrt(0.075**2 + 0.05**2)))
    assert whole.std == pytest.approx(sqrt(0.4375 + 3.0)), "the shares of components are of the variance of all samples"
    assert (mixed.stats["id_reuse"].mean, mixed.saturation) == (0.1, 5.0)


def test_a_trait_that_few_prompts_never_had_is_not_known_to_be_absent():
    mixed = mixed_baseline([stratum("a", 30.0, BaselineStat(0.0, 0.05, 64.0, 0.0), n_prompts=16.0)], Baseline())
    assert mixed.stats["length"].error == pytest.approx(0.05 / 4)


def test_the_gap_of_each_task_is_compared_with_that_of_its_own_start():
    stat = BaselineStat(0.0, 1.0)
    one = stratum("a", 10.0, stat, audits=AuditGapMean(0.0, 0.1))
    two = stratum("b", 30.0, stat, audits=AuditGapMean(-1.0, 0.2))
    two.smooth.add_signed("audited_score", 30 * 0.6)
    two.smooth.add_signed("audit", 30 * 0.2)
    two.smooth.add("audit_gap_clustered", (30 * 0.3) ** 2)
    growth = audit_gap_growth([one, two, stratum("c", 10.0, stat)], 16)
    assert growth == pytest.approx((0.75 * 1.4, sqrt(0.025**2 + 0.15**2 + 0.225**2)))
    assert audit_gap_growth([one, two], 41) is None
    assert audit_gap_growth([stratum("a", 40.0, stat)], 16) is None, "its start is not known"


def test_a_gap_that_was_there_from_the_start_of_a_run_is_none_and_one_that_grows_is():
    """Whatever the scales of model and judge, with named tasks and without."""

    def warned(names, paid):
        rng = Random(8)
        steps = [
            [
                each._replace(
                    audit=0.6 * each.score + 0.8 * rng.gauss(0, 1) - 1.5, score=each.score + paid * (step > 20)
                )
                for each in (sample(rng, "chat") for _ in range(128))
            ]
            for step in range(60)
        ]
        return [wire for _, wire, _ in watched(steps, names=names)[1] if wire == "audit_gap"]

    assert [warned(names, 0.0) for names in (True, False)] == [[], []]
    assert [warned(names, 1.8) for names in (True, False)] == [["audit_gap"], ["audit_gap"]]


def test_no_run_of_a_thousand_windows_warns_of_a_gap_that_does_not_grow():
    rng = Random(9)
    steps = [
        [sample(rng, "chat")._replace(audit=rng.gauss(-0.9, 1.0) if i % 4 == 0 else None) for i in range(32)]
        for _ in range(1_000)
    ]
    monitor, alerts = watched(steps, names=False, window=32)
    assert "audit_gap" not in {wire for _, wire, _ in alerts}
    assert -2.5 < monitor.runs["a"].statistics["audit_gap"] < 0.0


@pytest.mark.parametrize(("n", "grown"), [(512.0, (0.75, 0.05)), (1.0, None)])
def test_the_growth_of_a_score_is_from_the_start_of_the_run_not_from_a_calibration(n, grown):
    run = Run.new("", "ppo-7", None, BaselineSource(Baseline({"score": BaselineStat(0.5, 2.0, n, 0.06)})))
    assert run.growth("score") is None, "no window yet"
    for _ in range(100):
        run.smooth.add("samples")
        run.smooth.add_signed("score", 2.0)
    run.smooth.add("score_clustered", (0.08 * 100) ** 2)
    assert run.growth("score") == (None if grown is None else pytest.approx(grown))

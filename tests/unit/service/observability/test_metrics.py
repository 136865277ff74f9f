"""The table of metrics, and the counts of each method."""

from __future__ import annotations

import asyncio
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from rewardserve.model.calibration import Calibration
from rewardserve.model.reward import Reward, RewardSettings, build_pipeline
from rewardserve.model.traits import TRAITS
from rewardserve.service.api.dialects import DIALECTS
from rewardserve.service.app import create_app
from rewardserve.service.auth.api_keys import ApiKeys
from rewardserve.service.observability import logs
from rewardserve.service.observability.metrics import PREFIX, TABLE, Metrics, score_buckets
from rewardserve.service.settings import ServeSettings
from rewardserve.service.tripwires.baseline import Baseline, BaselineSource, baseline_stat
from rewardserve.service.tripwires.features import SampleFeatures
from rewardserve.service.tripwires.run_monitor import RunMonitor
from rewardserve.service.tripwires.run_state import MonitorLimits
from rewardserve.service.tripwires.running_sums import ENTRIES
from tests.support.rewards import reward_of, sole
from tests.support.service_fakes import StillClock

# DESIGN, section 4.
OF_THE_DESIGN = {
    "tripwire_statistic": {"wire", "run", "model"}, "tripwire_threshold": {"wire"},
    "tripwire_tripped": {"wire", "run", "model", "cause"}, "tripwire_trips_total": {"wire", "run", "model"},
    "requests_total": {"route", "kind", "code"}, "request_seconds": {"route", "kind"}, "samples_total": {"outcome"},
    "tokens_total": {"kind"}, "queue_samples": set(), "queue_tokens": set(), "queue_seconds": set(),
    "batch_samples": set(), "batch_tokens": set(), "forward_seconds": set(),
    "capped_total": {"side"}, "model_version": set(),
}  # fmt: skip
BESIDE_THE_DESIGN = {
    # Several models may be loaded, each with buckets of its own.
    "raw_score": {"version"},
    "value": {"version"},
    "model_loads_total": {"outcome"},
    "shadow_samples_total": {"outcome"},
    "shadow_pairs_total": {"order"},
    "shadow_agreement": {"version"},
    "shadow_shift": {"version"},
    "shadow_correlation": {"version"},
    "run_model_age_seconds": {"run", "model"},
    "run_sum_total": {"run", "model", "of"},
    "run_baseline_moment": {"run", "model", "of", "order"},
    "run_baseline_clustered": {"run", "model", "of"},
    "run_audits": {"run", "model"},
    "run_component_sum_total": {"run", "model", "component", "of"},
    "run_component_baseline_moment": {"run", "model", "component", "order"},
    "run_kl": {"run", "model"},
    "runs_over_limit_total": set(),
    "samples_inspected_total": {"outcome"},
    "audit_skipped_total": set(),
    "captured_samples_total": {"outcome"},
    "policy_requests_total": {"outcome"},
    "alerts_lost_total": set(),
    "device_memory_bytes": {"kind"},
    "encode_seconds": set(),
    "run_step": {"run", "model"},
    "canary_margin": {"canary"},
    "batch_failures_total": {"reason"},
    "batch_budget_tokens": set(),
    "scorer_hanging": set(),
    "connections_ended_total": {"reason"},
    "collector_failures_total": {"part"},
}
CALIBRATION = Calibration(mean=3.0, std=2.0, cap_low=-1.0, cap_high=1.0)


class Stats:
    """State of no models, apart from the given functions."""

    n_queued_samples = n_queued_tokens = batch_budget_tokens = 0
    is_scorer_hanging = False
    device_memory = (0, 0)
    canary_margins: ClassVar = {}

    def __new__(cls, **given):
        return object.__new__(
            type("Stats", (cls,), {name: property(lambda self, f=f: f()) for name, f in given.items()})
        )

    def __init__(self, **given):
        pass


def ready(calibration=CALIBRATION, **settings):
    metrics = Metrics()
    pipeline = build_pipeline(sole(calibration), RewardSettings(**settings))
    metrics.model_loaded(1, calibration, pipeline)
    return metrics, pipeline


def samples(metrics, name):
    families = text_string_to_metric_families(metrics.render().decode())
    return [s for f in families for s in f.samples if s.name == PREFIX + name]


def edges(metrics, name):
    return [float(s.labels["le"]) for s in samples(metrics, f"{name}_bucket")][:-1]


def test_names_and_labels_are_those_of_the_design():
    table = {row.name: set(row.labels) for row in TABLE if row.name != "model_info"}
    assert table == OF_THE_DESIGN | BESIDE_THE_DESIGN


def test_score_histograms_have_41_buckets_five_standard_deviations_to_each_side():
    metrics, _ = ready()
    assert edges(metrics, "raw_score") == pytest.approx([3.0 + 2.0 * (-5 + k / 4) for k in range(41)])
    assert edges(metrics, "value") == pytest.approx([-5 + k / 4 for k in range(41)])
    assert len(score_buckets(None)) == 41


def test_without_normalisation_the_reward_has_the_buckets_of_the_raw_score():
    metrics, _ = ready(normalize=False, shape="none")
    assert edges(metrics, "value") == edges(metrics, "raw_score")


@pytest.mark.parametrize("shape", ["cap", "softcap"])
def test_capped_rewards_are_counted_by_side(shape):
    metrics, pipeline = ready(shape=shape)
    metrics.observe_samples(1, {"ok": 4}, 20, 0, [reward_of(pipeline, raw) for raw in (100.0, 100.0, -100.0, 3.0)])
    assert {s.labels["side"]: s.value for s in samples(metrics, "capped_total")} == {"high": 2, "low": 1}


def test_a_failed_sample_never_enters_a_score_histogram():
    metrics, _ = ready()
    metrics.observe_samples(1, {"ok": 1, "score_not_finite": 1}, 12, 7, [Reward(1.0, 1.0)])
    assert [s.value for s in samples(metrics, "raw_score_count")] == [1]
    assert {s.labels["outcome"]: s.value for s in samples(metrics, "samples_total")} == {
        "ok": 1,
        "score_not_finite": 1,
        "run_blocked": 0,
    }
    assert {s.labels["kind"]: s.value for s in samples(metrics, "tokens_total")} == {"received": 12, "cached": 7}


def test_what_the_backend_did_not_compute_was_shared():
    """Two samples of 20 tokens are equal, so the scorer was given 80 of the 100, and computed 40."""
    metrics, _ = ready()
    metrics.observe_batch(n_rows=3, n_row_tokens=80, n_tokens=100, n_computed=40, n_padding=3, seconds=0.01)
    kinds = {s.labels["kind"]: s.value for s in samples(metrics, "tokens_total")}
    assert kinds == {"computed": 40, "padding": 3, "shared": 60}
    assert [s.value for s in samples(metrics, "batch_tokens_sum")] == [80]


@given(values=st.lists(st.floats(-50, 50) | st.sampled_from([-10.0, -9.5, 0.0, 3.0, 13.0])))
def test_a_histogram_is_the_one_of_the_client_library(values):
    metrics, _ = ready()
    metrics.observe_samples(1, {}, 0, 0, [Reward(v, v) for v in values])
    registry = CollectorRegistry()
    baseline = Histogram(
        PREFIX + "raw_score", "Raw scores.", ["version"], buckets=score_buckets(CALIBRATION), registry=registry
    ).labels(version="1")
    for value in values:
        baseline.observe(value)
    families = text_string_to_metric_families(generate_latest(registry).decode())
    expected = [(s.name, s.labels, pytest.approx(s.value)) for f in families for s in f.samples]
    ours = [s for part in ("bucket", "count", "sum") for s in samples(metrics, f"raw_score_{part}")]
    assert [(s.name, s.labels, s.value) for s in ours] == expected


def test_each_loaded_model_has_score_histograms_of_its_own_until_it_is_gone():
    metrics, pipeline = ready()
    other = Calibration(mean=100.0, std=1.0)
    metrics.model_loaded(2, other, pipeline)
    metrics.observe_samples(2, {"ok": 1}, 3, 0, [Reward(100.0, 0.5)])
    counts = {s.labels["version"]: s.value for s in samples(metrics, "raw_score_count")}
    assert counts == {"1": 0, "2": 1}
    of_two = [float(s.labels["le"]) for s in samples(metrics, "raw_score_bucket") if s.labels["version"] == "2"]
    assert of_two[:-1] == list(score_buckets(other))
    metrics.model_unloaded(2)
    assert {s.labels["version"] for s in samples(metrics, "raw_score_count")} == {"1"}


def test_what_is_loaded_is_named_and_what_is_not_any_more_is_not():
    metrics, _ = ready()
    labels = next(row.labels for row in TABLE if row.name == "model_info")
    infos = [dict.fromkeys(labels, "x") | {"version": e, "state": s} for e, s in (("1", "standby"), ("2", "serving"))]
    metrics.set_models(2, infos)
    metrics.set_models(2, infos[1:])
    assert [(s.labels["version"], s.labels["state"], s.value) for s in samples(metrics, "model_info")] == [
        ("2", "serving", 1)
    ]
    assert [s.value for s in samples(metrics, "model_version")] == [2]


def test_the_queue_is_read_at_every_scrape():
    metrics, _ = ready()
    queue = [1, 2]
    metrics.watch_models(
        Stats(
            n_queued_samples=lambda: len(queue),
            n_queued_tokens=lambda: sum(queue),
            batch_budget_tokens=lambda: 2 * sum(queue),
        )
    )
    queue.append(10)
    assert [s.value for s in samples(metrics, "queue_samples")] == [3]
    assert [s.value for s in samples(metrics, "queue_tokens")] == [13]
    assert [s.value for s in samples(metrics, "batch_budget_tokens")] == [26]


def test_runs_are_read_from_the_monitor_at_every_scrape():
    metrics, _ = ready()
    monitor = RunMonitor(BaselineSource(components=("a", "b")), MonitorLimits(window=16))
    metrics.watch_runs(monitor, StillClock(0.0))
    traits = dict.fromkeys(TRAITS, 0.0) | {"judge_injection": 1.0, "length": 3.0}
    seen = SampleFeatures(1, None, 0.5, -0.25, True, tuple(traits.values()), text_digest=7, components=(0.5, -1.0))
    for _ in range(5):
        monitor.observe("ppo-7", 9, [seen._replace(prompt_hash=i) for i in range(16)], 0.0, kl=2.5)
    got = {(s.name, *s.labels.values()): s.value for s in all_samples(metrics) if "ppo-7" in s.labels.values()}
    sums = {s.labels["of"]: s.value for s in all_samples(metrics) if s.name == "rewardserve_run_sum_total"}
    assert (
        sums["samples"],
        sums["judge_injection"],
        sums["score_negative"],
        sums["score_positive"],
        sums["length"],
    ) == (
        80,
        80,
        20,
        0,
        240,
    )
    assert set(sums) == set(ENTRIES)
    assert [v for k, v in got.items() if k[0] == "rewardserve_run_step"] == [9]
    assert [v for k, v in got.items() if k[0] == "rewardserve_run_kl"] == [2.5]
    tripped = {s.labels["wire"]: s.value for s in samples(metrics, "tripwire_tripped")}
    assert (tripped["judge_injection"], tripped["length_high"]) == (1.0, 0.0)
    thresholds = {s.labels["wire"]: s.value for s in samples(metrics, "tripwire_threshold")}
    assert thresholds == monitor.thresholds
    assert set(tripped) == set(thresholds)
    assert {s.labels["wire"]: s.value for s in samples(metrics, "tripwire_statistic")}["judge_injection"] == 1.0
    assert {s.labels["wire"]: s.value for s in samples(metrics, "tripwire_trips_total")}["judge_injection"] == 1.0


def test_baselines_are_exported_as_sums_that_add_up():
    metrics, _ = ready()
    monitor = RunMonitor(
        BaselineSource(Baseline({"score": baseline_stat("score", 0.5, 2.0)}), ("a", "b")), MonitorLimits(window=16)
    )
    metrics.watch_runs(monitor, StillClock(0.0))
    for i in range(64):
        monitor.observe(
            "ppo-7",
            9,
            [SampleFeatures(i, None, 0.5, 0.0, False, (float(i % 4), 0.0, 0.1), components=(i % 2, -1.0))],
            0.0,
        )
    told = {(s.labels["of"], s.labels["order"]): s.value for s in samples(metrics, "run_baseline_moment")}
    assert [told["score", p] for p in "012"] == [1.0, 0.5, 4.25], "of a calibration: one, its mean, its mean square"
    assert [told["length", p] for p in "012"] == pytest.approx([64, 96, 224]), "of a run: its first samples"
    clustered = {s.labels["of"]: s.value for s in samples(metrics, "run_baseline_clustered")}
    assert clustered["score"] == 0.0, "of a calibration the error is not known"
    assert clustered["length"] == pytest.approx(64 * 1.25 * 16 / 15), "64 prompts of variance 1.25 in windows of 16"
    components = {
        (s.labels["component"], s.labels["order"]): s.value for s in samples(metrics, "run_component_baseline_moment")
    }
    assert [components["a", p] for p in "012"] == pytest.approx([64, 32, 32])
    assert [components["b", p] for p in "012"] == pytest.approx([64, -64, 64])
    sums = {(s.labels["component"], s.labels["of"]): s.value for s in samples(metrics, "run_component_sum_total")}
    assert sums == {("a", "positive"): 32, ("a", "negative"): 0, ("a", "squared"): 32,
                    ("b", "positive"): 0, ("b", "negative"): 64, ("b", "squared"): 64}  # fmt: skip


def test_memory_is_read_at_every_scrape():
    metrics, _ = ready()
    metrics.watch_models(Stats(device_memory=lambda: (7, 9)))
    assert {s.labels["kind"]: s.value for s in samples(metrics, "device_memory_bytes")} == {"used": 7, "total": 9}


def all_samples(metrics):
    return [s for family in text_string_to_metric_families(metrics.render().decode()) for s in family.samples]


def test_what_cannot_be_read_is_left_out_and_counted_and_the_rest_is_there(capsys):
    metrics, monitor = Metrics(), RunMonitor(BaselineSource(), MonitorLimits())
    metrics.watch_runs(monitor, StillClock(0.0))
    metrics.watch_models(
        Stats(
            n_queued_samples=lambda: 3,
            n_queued_tokens=lambda: 1 // 0,
            batch_budget_tokens=lambda: 5,
            canary_margins=lambda: {"a": 10**400},
        )
    )
    for run in ("good", "bad", "also good"):
        monitor.observe(run, 1, [SampleFeatures(1, None, 0.5, 0.5, False, ())], now=0.0)
    monitor.runs["bad"].step = 10**400
    for scrape in (1, 2):
        values = scraped(metrics)
        assert values["rewardserve_queue_samples"] == 3
        assert values["rewardserve_batch_budget_tokens"] == 5
        assert "rewardserve_queue_tokens" not in values
        assert {labels for labels in values if labels.startswith("rewardserve_run_step")} == {
            "rewardserve_run_step{model=}{run=good}", "rewardserve_run_step{model=}{run=also good}"}  # fmt: skip
        assert not any("bad" in name for name in values)
        for part in ("rewardserve_queue_tokens", "run", "rewardserve_canary_margin"):
            assert values[f"rewardserve_collector_failures_total{{part={part}}}"] == scrape
    monitor.runs["bad"].step = 7
    assert scraped(metrics)["rewardserve_run_step{model=}{run=bad}"] == 7


def test_a_part_that_begins_to_fail_is_logged_once_until_it_can_be_read_again(monkeypatch):
    logged = []
    monkeypatch.setattr(logs, "logger", lambda name: Recorder(logged))
    metrics, monitor = Metrics(), RunMonitor(BaselineSource(), MonitorLimits())
    metrics.watch_runs(monitor, StillClock(0.0))
    for run in ("good", "bad", "worse"):
        monitor.observe(run, 1, [SampleFeatures(1, None, 0.5, 0.5, False, ())], now=0.0)

    def scrapes(*steps):
        for step in steps:
            monitor.runs["bad"].step = monitor.runs["worse"].step = step
            metrics.render()
        found, logged[:] = list(logged), []
        return found

    assert scrapes(10**400, 10**400) == ["run"]
    assert scrapes(1, 1) == []
    assert scrapes(10**400, 10**400) == ["run"], "it was well meanwhile"


def test_each_histogram_fails_by_its_own_name(monkeypatch):
    logged = []
    monkeypatch.setattr(logs, "logger", lambda name: Recorder(logged))
    metrics = Metrics()
    tallies = list(metrics._fast_histograms.values())
    assert len(tallies) > 1
    for broken in (tallies[0], tallies[-1]):
        broken._sum = "no number"
        for _ in range(3):
            text = metrics.render().decode()
            assert f"rewardserve_{broken._row.name}_bucket" not in text
        assert logged == [f"rewardserve_{broken._row.name}"]
        broken._sum = 0.0
        metrics.render()
        logged.clear()


class Recorder:
    """A log that keeps which part failed."""

    def __init__(self, parts):
        self._parts = parts

    def error(self, event, *, part, exc_info):
        assert event == "collector_failed"
        assert isinstance(exc_info, Exception)
        self._parts.append(part)


def scraped(metrics):
    families = text_string_to_metric_families(metrics.render().decode())
    return {
        s.name + "".join(f"{{{k}={v}}}" for k, v in s.labels.items()): s.value
        for family in families
        for s in family.samples
    }


def test_requests_of_scoring_routes_have_a_kind_whatever_the_wire_format():
    """Of the application's own tables: a dialect that is added tomorrow is covered without a change of rules."""

    async def built():
        return create_app(ServeSettings(keys_file=None), ApiKeys())

    metrics = asyncio.run(built()).metrics
    dialects = {dialect.path.replace(":path}", "}") for dialect in DIALECTS}  # as the label of a route writes it
    for path in dialects:
        metrics.observe_request(path, 200, 0.1)
    for route in ("/score", "/compare", "/metrics", "/readyz", "/admin/models", "other"):
        metrics.observe_request(route, 200, 0.1)
    kinds = {s.labels["route"]: s.labels["kind"] for s in samples(metrics, "requests_total")}
    assert {route for route, kind in kinds.items() if kind == "scoring"} == {
        "/score",
        "/compare",
        *dialects,
    }
    assert set(kinds.values()) == {"scoring", "other"}
    assert {s.labels["kind"] for s in samples(metrics, "request_seconds_count")} == {"scoring", "other"}

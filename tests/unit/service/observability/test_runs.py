"""Series of runs: which model they are of, and how long they are exported."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace

from prometheus_client import CollectorRegistry

from rewardserve.service.api.routes.tripwires import describe_run
from rewardserve.service.observability.metrics import PREFIX, TABLE
from rewardserve.service.observability.runs import NAMES, RunsCollector
from rewardserve.service.tripwires.alert import CANARY, Alert
from rewardserve.service.tripwires.baseline import BaselineSource
from rewardserve.service.tripwires.features import SampleFeatures
from rewardserve.service.tripwires.run_monitor import CANARY_THRESHOLD, RunMonitor
from rewardserve.service.tripwires.run_state import MonitorLimits
from rewardserve.service.tripwires.run_table import CANARIES
from tests.support.service_fakes import StillClock

ENDED_S = 600.0


def monitor():
    made = RunMonitor(BaselineSource(model="kind"), MonitorLimits(ended_s=ENDED_S))
    made.observe("ppo-7", 3, [SampleFeatures(1, None, 0.5, 0.1, False, ())], now=100.0)
    return made


def exported(of, now):
    """Labels of every series of a run, with its name."""
    registry = CollectorRegistry()
    rows = {row.name: row for row in TABLE if row.name in NAMES}
    registry.register(RunsCollector(rows, PREFIX, of, StillClock(now), SimpleNamespace(collector_failed=print)))
    return [
        (sample.name, sample.labels)
        for family in registry.collect()
        for sample in family.samples
        if "run" in sample.labels
    ]


def test_every_series_of_a_run_names_its_model():
    series = exported(monitor(), 100.0)
    assert len(series) > 30
    assert {labels["model"] for _, labels in series} == {"kind"}


def test_labels_are_those_of_the_table():
    table = {PREFIX + row.name: set(row.labels) for row in TABLE}
    for name, labels in exported(monitor(), 100.0):
        assert set(labels) == table[name]


def test_a_run_that_sends_nothing_for_the_stated_time_is_exported_no_more_and_again_when_it_goes_on():
    watched = monitor()
    assert exported(watched, 100.0 + ENDED_S)
    assert not exported(watched, 100.1 + ENDED_S)
    watched.observe("ppo-7", 4, [SampleFeatures(1, None, 0.5, 0.1, False, ())], now=900.0)
    sums = [labels for name, labels in exported(watched, 900.0) if name.endswith("run_sum_total")]
    assert sums
    assert watched.runs["ppo-7"].all_sums["samples"] == 2, "its sums are kept"


def test_alerts_of_canaries_are_no_run_that_could_end():
    watched = monitor()
    watched.report(CANARIES, Alert(CANARY, "page", 9.0, CANARY_THRESHOLD, None, ("empty_opener",)), 100.0)
    assert {labels["run"] for _, labels in exported(watched, 1e6)} == {CANARIES}


def test_the_report_of_runs_has_the_time_of_an_alert_and_whether_the_run_has_ended():
    watched = monitor()
    watched.report(CANARIES, Alert(CANARY, "page", 9.0, CANARY_THRESHOLD, None, ("empty_opener",)), 100.0)
    canaries, run = (describe_run(label, watched, 100.0 + 3600.0, {}) for label in (CANARIES, "ppo-7"))
    (alert,) = canaries.tripped
    began = datetime.fromisoformat(alert.since)
    assert began.utcoffset() is not None
    assert abs((datetime.now(UTC) - began).total_seconds() - 3600.0) < 5
    assert (run.ended, canaries.ended) == (True, False)

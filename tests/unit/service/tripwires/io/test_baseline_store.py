"""What is usual outlives the server, and nothing that is broken takes it down."""

from __future__ import annotations

import os

import pytest

from rewardserve.service.tripwires.baseline import Baseline, BaselineSource, BaselineStat
from rewardserve.service.tripwires.io import baseline_store
from rewardserve.service.tripwires.io.baseline_store import BaselineStore
from rewardserve.service.tripwires.run_monitor import RunMonitor
from rewardserve.service.tripwires.run_state import MonitorLimits
from tests.support.service_fakes import MemoryBaselines, TripwireLog
from tests.unit.service.tripwires.test_run_monitor import healthy, seen

USUAL = Baseline({"length": BaselineStat(4.0, 0.5, 512.0), "score": BaselineStat(0.1, 1.0, 512.0)}, 3.2)


def made_of(mean="1.0", std="1.0", n="1.0", saturation="null", name="length"):
    usual = f'{{"{name}": {{"mean": {mean}, "std": {std}, "n": {n}}}}}'
    return f'{{"r": {{"stats": {usual}, "saturation": {saturation}}}}}'


def opened(folder, served="aa", failed=None):
    events = TripwireLog()
    events.failures = events.failures if failed is None else failed
    return BaselineStore(folder, served, events)


def test_what_is_kept_is_there_after_a_restart(tmp_path):
    kept = opened(tmp_path)
    kept.save("ppo 7/a", USUAL)
    kept.close()
    assert dict(opened(tmp_path).baselines) == {"ppo 7/a": USUAL}
    assert dict(opened(tmp_path, "bb").baselines) == {}, "of another model it says nothing"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"r": 1}', '{"r": {"stats": 1, "saturation": 2}}',
                                  '{"r": {"stats": {"length": {"mean": 1}}, "saturation": null}}',
                                  *[made_of(mean=each) for each in ('"x"', "null", "[]", "NaN", "1e999", "1e200", "true")],
                                  made_of(mean="1" + "0" * 400), made_of(mean="1" + "0" * 5000),
                                  *[made_of(std=each) for each in ('"x"', "0", "-1", "Infinity")], made_of(n="-1"),
                                  made_of(std="-1", name="component_0"), made_of(saturation='"x"'), made_of(name="\\ud800"),
                                  made_of(name="a b"),
                                  '{"r": ' + "[" * 200_000, "[" * 200_000, '{"r": {"stats": ', "\0\0\0"])  # fmt: skip
def test_a_damaged_file_is_reported_set_aside_and_replaced(tmp_path, text):
    (tmp_path / "baselines-aa.json").write_text(text)
    failed = []
    kept = opened(tmp_path, failed=failed)
    ((why),) = failed
    assert "set aside" in why
    assert (tmp_path / "baselines-aa.json.broken").read_text() == text
    kept.save("r", USUAL)
    kept.close()
    assert dict(opened(tmp_path).baselines) == {"r": USUAL}


def test_a_part_of_the_reward_that_did_not_vary_does_not_break_the_file(tmp_path):
    """A head may give every response of the first windows the same score."""
    store, failed = MemoryBaselines(), []
    limits = MonitorLimits(window=16, warm_up=2)
    monitor = RunMonitor(BaselineSource(components=("one", "two"), store=store), limits)
    monitor.observe("run", 0, [seen(components=(float(i % 2), 0.0)) for i in range(32)], 0.0)
    ((_, learned),) = store.saved
    assert learned.stats["component_1"] == BaselineStat(0.0, 0.0, 32.0)
    kept = opened(tmp_path)
    kept.save("run", learned)
    kept.close()
    assert dict(opened(tmp_path, failed=failed).baselines) == {"run": learned}
    assert failed == []


def test_a_file_that_is_far_too_large_is_not_read(tmp_path, monkeypatch):
    monkeypatch.setattr(baseline_store, "MAX_BYTES", 100)
    (tmp_path / "baselines-aa.json").write_text(made_of() + " " * 100)
    failed = []
    assert dict(opened(tmp_path, failed=failed).baselines) == {}
    assert "set aside" in failed[0]


def test_a_pipe_in_place_of_the_file_holds_nothing_up(tmp_path):
    os.mkfifo(tmp_path / "baselines-aa.json")
    assert dict(opened(tmp_path).baselines) == {}


def test_a_folder_that_is_gone_takes_nothing_down(tmp_path):
    failed = []
    kept = opened(tmp_path / "gone", failed=failed)
    kept.save("r", USUAL)
    kept.close()
    assert len(failed) == 1


def test_the_runs_that_were_saved_first_are_dropped(tmp_path, monkeypatch):
    monkeypatch.setattr(baseline_store, "MAX_RUNS", 3)
    kept = opened(tmp_path)
    for i in range(5):
        kept.save(f"run {i}", USUAL)
    kept.close()
    assert list(opened(tmp_path).baselines) == ["run 2", "run 3", "run 4"]


def test_a_run_that_goes_on_after_a_restart_is_compared_with_its_own_beginning(tmp_path):
    """A policy that was exploiting when the server went down is told of when it is up again."""
    limits = MonitorLimits(window=16, warm_up=2)

    def serve(samples):
        kept = opened(tmp_path)
        monitor = RunMonitor(BaselineSource(store=kept), limits)
        found = [f for i in range(0, len(samples), 4) for f in monitor.observe("run", i, samples[i : i + 4], 0.0)]
        kept.close()
        return {alert.wire for alert in found}

    assert serve(healthy(64, length=4.0)) == set()
    assert serve(healthy(400, length=4.5)) == {"length_high"}

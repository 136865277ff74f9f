"""Pipelines over one head called `score`, for most tests."""

from __future__ import annotations

from rewardserve.model.reward import EnsembleMember, RewardSettings, build_pipeline
from rewardserve.model.traits import Lexicon
from rewardserve.service.tripwires.baseline import Baseline, BaselineSource
from rewardserve.service.tripwires.io.run_watcher import CpuBudget, RunWatcher
from rewardserve.service.tripwires.run_monitor import MonitorLimits, RunMonitor


def sole(calibration, heads=(("score", 1.0),)):
    """One member: a model with these heads."""
    return [EnsembleMember("model", tuple(heads), calibration)]


def pipeline_of(calibration, **settings):
    """The pipeline of one model."""
    return build_pipeline(sole(calibration), RewardSettings(**settings))


def reward_of(pipeline, raw, **columns):
    """The reward of one raw score."""
    return pipeline.one({"score": raw}, **columns)


def watching(clock, reference=None, *, share=1.0, found=None, **limits):
    """A monitor of every sample. Alerts go to `found`, as (run, alert)."""
    baseline_source = BaselineSource(reference or Baseline())
    monitor = RunMonitor(baseline_source, MonitorLimits(**limits))
    tell = (lambda *each: found.append(each)) if found is not None else (lambda *_: None)
    return RunWatcher(monitor, baseline_source, Lexicon.read(), clock, tell, cpu_budget=CpuBudget(share, clock.now()))

"""Pipelines over one head called `score`, for most tests."""

from __future__ import annotations

from rewardserve.model.backends import ModelSpec, echo
from rewardserve.model.reward import EnsembleMember, RewardSettings, build_pipeline
from rewardserve.model.traits import Lexicon
from rewardserve.service.tripwires.baseline import Baseline, BaselineSource
from rewardserve.service.tripwires.cpu_budget import CpuBudget
from rewardserve.service.tripwires.io.alert_sender import AlertSender
from rewardserve.service.tripwires.io.run_watcher import RunWatcher
from rewardserve.service.tripwires.run_monitor import RunMonitor
from rewardserve.service.tripwires.run_state import MonitorLimits
from tests.support.service_fakes import TripwireLog


def sole(calibration, heads=(("score", 1.0),)):
    """One member: a model with these heads."""
    return [EnsembleMember("model", tuple(heads), calibration)]


def pipeline_of(calibration, **settings):
    """The pipeline of one model."""
    return build_pipeline(sole(calibration), RewardSettings(**settings))


def reward_of(pipeline, raw, **columns):
    """The reward of one raw score."""
    return pipeline.one({"score": raw}, **columns)


def watching(clock, reference=None, *, share=1.0, found=None, encoder=None, **limits):
    """A monitor of every sample. Alerts go to `found`, as (run, alert)."""
    baseline_source = BaselineSource(reference or Baseline())
    monitor = RunMonitor(baseline_source, MonitorLimits(**limits))
    events = TripwireLog()
    events.alerts = events.alerts if found is None else found
    return RunWatcher(
        monitor,
        baseline_source,
        Lexicon.read(),
        clock,
        AlertSender(monitor, events),
        encoder=encoder or echo.load(ModelSpec()).encode,
        pipeline=pipeline_of(None),
        model={},
        cpu_budget=CpuBudget(share, clock.now()),
    )

"""Home: each run in a word and a colour, the most urgent first."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite
from typing import Any, NamedTuple

from rewardserve.service.api.routes.tripwires import find_run, summarise_runs
from rewardserve.service.api.run_summary import describe_canaries
from rewardserve.service.api.schemas.runs import RunState, RunSummary
from rewardserve.service.console.parts import Console
from rewardserve.service.console.session import Viewer
from rewardserve.service.review.records import RunCounts
from rewardserve.service.tripwires.run_monitor import RunMonitor
from rewardserve.service.tripwires.run_state import Run

COLOURS: dict[RunState, str] = {
    "blocked": "red", "page": "red", "warn": "amber", "learning": "grey", "quiet": "green", "ended": "grey",
}  # fmt: skip
WORDS: dict[RunState, str] = {
    "blocked": "blocked", "page": "alarm", "warn": "warning", "learning": "learning", "quiet": "quiet", "ended": "ended",
}  # fmt: skip

_MAX_NEAREST = 3
_MAX_STORED = 200


class Nearness(NamedTuple):
    """A wire and its statistic as a share of the threshold, in percent."""

    wire: str
    percent: int


class RunRow(NamedTuple):
    """A run on the page."""

    label: str
    colour: str
    word: str
    summary: RunSummary
    step: int | None
    n_samples: int
    seen_s: float
    nearest: list[Nearness]


def view(console: Console, viewer: Viewer, stored: Iterable[RunCounts]) -> dict[str, Any]:
    """The variables of the page. `stored` are the runs of the review store, for those that the monitor has forgotten."""
    runtime = console.active_models.current()
    monitor, now = runtime.watcher.monitor, console.clock.now()
    is_admin = "admin" in viewer.scopes  # a trainer's key must not learn how its policy is watched
    rows = live_rows(console, viewer) if is_admin else []
    known = {row.label for row in rows}
    identity = runtime.loaded.identity
    return {
        "rows": rows,
        "stored": [each for each in stored if each.run not in known and viewer.may_see(each.run)][:_MAX_STORED],
        "model": identity.name,
        "model_version": runtime.version,
        "engine": f"{identity.engine} on {identity.device}",
        "up_s": now - console.started_at,
        "n_inspected": monitor.n_inspected,
        "canaries": describe_canaries(runtime.canaries.latest) if is_admin and runtime.canaries.latest else None,
        "judge": runtime.watcher.has_judge if is_admin else None,
    }


def live_rows(console: Console, viewer: Viewer) -> list[RunRow]:
    """The runs that the monitor knows and this person may see, the most urgent first."""
    watcher, now = console.active_models.current().watcher, console.clock.now()
    reports = watcher.attribution.shown if watcher.attribution is not None else {}
    summaries = summarise_runs(watcher.monitor, now, reports)
    return [
        row_of(label, summary, watcher.monitor, now) for label, summary in summaries.items() if viewer.may_see(label)
    ]


def row_of(label: str, summary: RunSummary, monitor: RunMonitor, now: float) -> RunRow:
    """The row of one run."""
    run = find_run(label, monitor)
    return RunRow(
        label, COLOURS[summary.state], WORDS[summary.state], summary, run.step, int(run.all_sums["samples"]),
        max(0.0, now - run.seen_at), nearest_wires(run, monitor),
    )  # fmt: skip


def nearest_wires(run: Run, monitor: RunMonitor) -> list[Nearness]:
    """The wires that are nearest to their thresholds, or above."""
    shares = []
    for wire in monitor.wires:
        value = run.statistics.get(wire.name)
        if value is not None and isfinite(value) and wire.threshold > 0.0 and wire.severity != "note":
            shares.append(Nearness(wire.name, round(100.0 * max(0.0, value) / wire.threshold)))
    return sorted(shares, key=lambda each: -each.percent)[:_MAX_NEAREST]

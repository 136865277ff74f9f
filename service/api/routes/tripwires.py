"""`GET /tripwires`, five lines a run; `GET /tripwires/{run}/details`, everything about one; and acknowledgements."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from math import exp

from fastapi import APIRouter, Depends, Request
from starlette.responses import Response

from rewardserve.service.api import openapi
from rewardserve.service.api.replies import info_response, json_response, page_response
from rewardserve.service.api.request_state import is_admin
from rewardserve.service.api.route_policy import ACKNOWLEDGE, DETAILS, HISTORY
from rewardserve.service.api.run_context import check_no_parameters
from rewardserve.service.api.run_summary import STATES, describe_canaries, state_of, summarise
from rewardserve.service.api.schemas.runs import (
    AcknowledgedReply,
    AlertOut,
    HistoryReply,
    PointOut,
    RunReply,
    RunsReply,
    RunSummary,
    TaskOut,
    WireOut,
)
from rewardserve.service.clock import Clock
from rewardserve.service.errors import NoSuchAlert, NoSuchRun
from rewardserve.service.models.active_models import ActiveModels
from rewardserve.service.tripwires.io.attribution import Attribution
from rewardserve.service.tripwires.io.attribution_report import ShownReport
from rewardserve.service.tripwires.run_history import HistoryPoint
from rewardserve.service.tripwires.run_monitor import RunMonitor
from rewardserve.service.tripwires.run_state import ActiveAlert, Run
from rewardserve.service.tripwires.strata import Stratum
from rewardserve.service.tripwires.wires import Wire

_ERRORS_OF_A_RUN = {404: "`no_such_run`", **openapi.NO_PARAMETERS}
_ERRORS_OF_AN_ALERT = {404: "`no_such_alert`", **openapi.NO_PARAMETERS}

Reports = Mapping[str, ShownReport]


def tripwire_routes(active_models: ActiveModels, clock: Clock) -> APIRouter:
    """Create the routes. `clock` is that of the run monitor."""
    router = APIRouter(tags=["trip wires"], dependencies=[Depends(check_no_parameters)])

    @router.get("/tripwires", responses=openapi.replies(RunsReply, 422, 503, words=openapi.NO_PARAMETERS))
    async def tripwires(request: Request) -> Response:
        """Summarise each run in five lines, the most urgent run first: state, worst alert, what the extra reward is paid for,
        trend of the score, and what to do.
        """
        watcher, canaries = active_models.current().watcher, active_models.current().canaries
        runs = summarise_runs(watcher.monitor, clock.now(), _reports(watcher.attribution, request))
        return page_response(RunsReply(runs, describe_canaries(canaries.latest)))

    @router.get(
        DETAILS,
        responses=openapi.replies(RunReply, 404, 422, 503, words=_ERRORS_OF_A_RUN),
    )
    async def details(run: str, request: Request) -> Response:
        """Describe one run: its statistics, its alerts to acknowledge, and the trip wires."""
        watcher = active_models.current().watcher
        return info_response(describe_run(run, watcher.monitor, clock.now(), _reports(watcher.attribution, request)))

    @router.get(
        HISTORY,
        responses=openapi.replies(HistoryReply, 404, 422, 503, words=_ERRORS_OF_A_RUN),
    )
    async def history(run: str) -> Response:
        """Show a run by step: score, length, KL, and the gap to the audit judge."""
        return info_response(describe_history(run, active_models.current().watcher.monitor, clock.now()))

    @router.post(
        ACKNOWLEDGE,
        responses=openapi.replies(AcknowledgedReply, 404, 422, 503, words=_ERRORS_OF_AN_ALERT),
    )
    async def acknowledge(run: str, wire: str) -> Response:
        """Acknowledge an alert: it ends, and the wire can trip again."""
        if not active_models.current().watcher.monitor.acknowledge(run, wire):
            raise NoSuchAlert(
                f"this run has no alert of the wire {wire[:64]!r}, or it is acknowledged already: see GET /tripwires"
            )
        return json_response(AcknowledgedReply(run, wire))

    return router


def _reports(attribution: Attribution | None, request: Request) -> Reports:
    """The reports to show, which quote responses; none for a client without the scope admin."""
    return attribution.shown if attribution is not None and is_admin(request) else {}


def summarise_runs(monitor: RunMonitor, now: float, reports: Reports) -> dict[str, RunSummary]:
    """Build the summaries, the most urgent run first, and of the same state the one with the latest sample. `now` is by the
    clock of the monitor.
    """
    runs = monitor.archived | monitor.runs
    summaries = {label: _summary(label, run, monitor, now, reports) for label, run in reversed(runs.items())}
    return dict(sorted(summaries.items(), key=lambda each: STATES.index(each[1].state)))


def find_run(label: str, monitor: RunMonitor) -> Run:
    """The run with this label. Raise `NoSuchRun`."""
    run = (monitor.archived | monitor.runs).get(label)
    if run is None:
        raise NoSuchRun(f"no run has the label {label[:64]!r}, or it is forgotten: see GET /tripwires")
    return run


def describe_history(label: str, monitor: RunMonitor, now: float) -> HistoryReply:
    """Build the reply of `GET /tripwires/{run}/history`. Raise `NoSuchRun`."""
    run = find_run(label, monitor)
    return HistoryReply(
        label, [_point(each) for each in run.history.points], [_alert(each, now) for each in run.alerts.values()]
    )


def _point(point: HistoryPoint) -> PointOut:
    n = point.n or 1
    return PointOut(
        point.first_step, point.last_step, point.n, point.score_mean, point.score_sd, point.reward / n,
        exp(point.log_tokens / point.n_tokens) if point.n_tokens else None, point.kl / point.n_kl if point.n_kl else None,
        point.gap / point.n_gap if point.n_gap else None,
    )  # fmt: skip


def describe_run(label: str, monitor: RunMonitor, now: float, reports: Reports) -> RunReply:
    """Build the reply of `GET /tripwires/{run}/details`. Times in it are UTC. Raise `NoSuchRun`."""
    run = find_run(label, monitor)
    return RunReply(
        label,
        _summary(label, run, monitor, now, reports),
        run.owner or None,
        f"{run.client.address} {run.client.detail}" if run.client is not None else None,
        run.step,
        monitor.has_ended(label, now),
        int(run.all_sums["samples"]),
        [_task(each) for each in run.strata.values() if each.task or len(run.strata) > 1],
        run.statistics,
        [_alert(active, now) for active in run.alerts.values()],
        [_wire(each) for each in monitor.wires],
    )


def _summary(label: str, run: Run, monitor: RunMonitor, now: float, reports: Reports) -> RunSummary:
    blocked = monitor.blocked_by(run.name or run.client, run.owner) is not None
    state = state_of(run, ended=monitor.has_ended(label, now), blocked=blocked)
    return summarise(label, run, state, reports.get(label))


def _task(stratum: Stratum) -> TaskOut:
    return TaskOut(
        stratum.task or None,
        stratum.profile or None,
        stratum.first_step,
        int(stratum.total["samples"] + stratum.window["samples"]),
        "complete" if stratum.has_baseline else "learning",
    )


def _alert(active: ActiveAlert, now: float) -> AlertOut:
    since = datetime.now(UTC) - timedelta(seconds=now - active.since)
    alert = active.alert
    return AlertOut(
        alert.wire, alert.severity, alert.statistic, alert.threshold, alert.since_step, alert.evidence, alert.task or None,
        since.isoformat(timespec="seconds"),
    )  # fmt: skip


def _wire(wire: Wire) -> WireOut:
    text = wire.text
    return WireOut(
        wire.name, wire.severity, wire.votes, text.cause, wire.threshold, wire.statistic.unit.text, text.summary,
        text.confidence, text.action,
    )  # fmt: skip

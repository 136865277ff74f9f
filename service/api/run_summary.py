"""Summarise a run in five lines for a person on call: state, worst alert, what is paid for, trend of the score, next step. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote

from rewardserve.service.api.schemas.runs import RunState, RunSummary
from rewardserve.service.tripwires.alert import VOTE, Alert
from rewardserve.service.tripwires.incidents import most_severe_first
from rewardserve.service.tripwires.io.attribution_report import ShownReport
from rewardserve.service.tripwires.io.canaries import CanaryResult, failing
from rewardserve.service.tripwires.prometheus import alert_name
from rewardserve.service.tripwires.run_state import Run
from rewardserve.service.tripwires.run_table import CANARIES
from rewardserve.service.tripwires.wires import ALERT_TEXTS, ALERT_UNITS, ATTRIBUTED

STATES: tuple[RunState, ...] = ("blocked", "page", "warn", "learning", "quiet", "ended")
"""States, the most urgent first."""

_RUNBOOK = "docs/how-to/runbook.md"
_NAME_IT = {
    True: "name the run (in the body, ?run= or x-run): without a name the hosts of one trainer are watched apart, and alert late",
    False: "name the runs, or end some: these samples are of several, so they are not watched",
}
"""Next step for samples without a run, by whether they are watched."""


def state_of(run: Run, *, ended: bool, blocked: bool) -> RunState:
    """The state of a run. Notes are information, so they leave it quiet."""
    severities = {active.alert.severity for active in run.alerts.values()}
    if blocked:
        return "blocked"
    if ended:
        return "ended"
    if "page" in severities:
        return "page"
    if "warn" in severities:
        return "warn"
    return "quiet" if run.has_baseline or run.alerts else "learning"


def summarise(label: str, run: Run, state: RunState, shown: ShownReport | None) -> RunSummary:
    """The five lines. `shown` is the best report on the pay of the run; None: there is none, or the client may not read it."""
    alerts = most_severe_first([active.alert for active in run.alerts.values() if active.alert.severity != "note"])
    return RunSummary(
        state,
        _worst(alerts) if alerts else None,
        None if shown is None else shown.sentence,
        "canaries are scored for the model, not for a run" if label == CANARIES else _trend(run),
        _next(label, alerts, state, shown) if run.name or label == CANARIES or alerts else _NAME_IT[run.is_watched],
    )


def describe_canaries(results: Iterable[CanaryResult]) -> str:
    """The failing canaries in one line."""
    listed = list(results)
    failed = failing(listed)
    words = ", ".join(f"{each.name} ({each.margin:+.2f})" for each in failed)
    return f"{len(failed)} of {len(listed)} fail{': ' if failed else ''}{words}"


def _worst(alerts: list[Alert]) -> str:
    first, *others = alerts
    text, unit = ALERT_TEXTS[first.wire], ALERT_UNITS[first.wire]
    since = "" if first.since_step is None else f" since step {first.since_step}"
    trips = "from" if first.wire == VOTE else "above"
    measured = f"{unit.measured(first.statistic)}; trips {trips} {unit.number(first.threshold)}"
    confidence = text.confidence.partition(". ")[0].rstrip(".")
    line = f"{first.severity} {first.wire}{since}: {text.summary} ({measured}). {confidence}."
    if others:
        line += f" {len(others)} more to acknowledge: {', '.join(each.wire for each in others)}"
    return line


def _trend(run: Run) -> str:
    """The score against the baseline, and where other prompts came since the start of the run, against that start too; and the
    number of samples, of those that were sent where some were not inspected.
    """
    shift, later = run.baseline.shift("score", run.compared.mean("score")), run.later_prompts
    if shift is None:
        changed = "the baseline is being learned"
    elif not later:
        of = "the run" if len(run.strata) < 2 else "each of its tasks"
        changed = f"{shift:+.1f} standard deviations from the start of {of}"
    else:
        step = later[-1].first_step
        since = "" if step is None else f" (the latest since step {step})"
        whole = run.run_wide.shift("score", run.smooth.mean("score"))
        start = "" if whole is None else f"{whole:+.1f} standard deviations from the start of the run, "
        changed = f"{start}{shift:+.1f} standard deviations from the start of each kind of prompts{since}"
    at = "" if run.step is None else f", at step {run.step}"
    n = int(run.all_sums["samples"])
    samples = f"{n:,} of {n + run.n_skipped:,} samples inspected" if run.n_skipped else f"{n:,} samples"
    return f"{changed}{at}, {samples}"


def _next(label: str, alerts: list[Alert], state: RunState, shown: ShownReport | None) -> str:
    path = f"GET /tripwires/{quote(label, safe='')}"
    if not alerts:
        if shown is not None and shown.report.growth.is_blind and state != "ended":
            return (
                "no alert, but `paid_for` says since when other prompts come: responses to these are compared with the first of "
                f"them from the next report on; {path}/attribution"
            )
        if shown is not None and shown.report.worth > 1 and state != "ended":
            return f"no alert, but `paid_for` names what alone earns a higher score: read whether it answers; {path}/attribution"
        return f"nothing; {path}/details has every statistic" if state != "ended" else f"nothing; {path}/details"
    wire = alerts[0].wire
    text = ALERT_TEXTS[wire]
    page = "attribution" if wire in ATTRIBUTED or (shown is not None and text.cause == "policy") else "details"
    return f"{text.action} {path}/{page}; {_RUNBOOK}#{alert_name(wire).lower()}"

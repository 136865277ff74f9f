"""One run: what changed, since when, what the extra reward is paid for, and the responses that show it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rewardserve.service.api.routes.tripwires import describe_history, describe_run, find_run, summarise_runs
from rewardserve.service.api.schemas.runs import AlertOut, HistoryReply
from rewardserve.service.console.charts import Mark, Series, histogram, line_chart, scatter
from rewardserve.service.console.pages.home import row_of
from rewardserve.service.console.parts import Console
from rewardserve.service.review.records import StoredSample
from rewardserve.service.tripwires.io.attribution_report import AttributionReport
from rewardserve.service.tripwires.io.run_texts import KeptSample
from rewardserve.service.tripwires.wires import ALERT_TEXTS

_MAX_FINDINGS = 3
_SEVERITIES = ("page", "warn", "note")


def view(console: Console, label: str, pairs: Sequence[tuple[StoredSample, StoredSample]]) -> dict[str, Any]:
    """The variables of the page of a run that the monitor knows. Raise `NoSuchRun`. `pairs` are responses to one prompt, an
    early one and one that an alert points at.
    """
    watcher, now = console.active_models.current().watcher, console.clock.now()
    find_run(label, watcher.monitor)
    attribution = watcher.attribution
    reports = attribution.shown if attribution is not None else {}
    summary = summarise_runs(watcher.monitor, now, reports)[label]
    details = describe_run(label, watcher.monitor, now, reports)
    history = describe_history(label, watcher.monitor, now)
    texts = attribution.texts if attribution is not None else None
    early, recent = (texts.early(label), texts.recent(label)) if texts is not None else ([], [])
    shown = reports.get(label)
    return {
        "label": label,
        "row": row_of(label, summary, watcher.monitor, now),
        "summary": summary,
        "details": details,
        "alerts": sorted(details.tripped, key=lambda each: _SEVERITIES.index(each.severity)),
        "alert_texts": ALERT_TEXTS,
        "charts": charts(history),
        "distribution": histogram("scores of the first responses beside the latest", _scores(early), _scores(recent)),
        "length": scatter(
            "score by length in words, first and latest responses", _by_length(early), _by_length(recent)
        ),
        "report": shown.report if shown else None,
        "findings": _findings(shown.report) if shown else [],
        "pairs": pairs,
    }


def charts(history: HistoryReply) -> list[tuple[str, str]]:
    """Titles and charts of the numbers that the run has, with its alerts as marks."""
    points = history.points
    x = [float(i if each.last_step is None else each.last_step) for i, each in enumerate(points)]
    marks = [_mark(each) for each in history.alerts if each.since_step is not None]
    wanted = (
        ("score", Series(x, [each.score for each in points], [each.score_sd for each in points])),
        ("length in tokens", Series(x, [each.tokens for each in points])),
        ("KL to the reference policy", Series(x, [each.kl for each in points])),
        ("score minus audit judge", Series(x, _filled([each.judge_gap for each in points]))),
    )
    drawn = ((title, line_chart(title, line, marks)) for title, line in wanted)
    return [(title, chart) for title, chart in drawn if chart]


def _filled(values: Sequence[float | None]) -> list[float | None]:
    """The gap is known at few points, so a line connects them: each unknown one has the value before it."""
    found: list[float | None] = []
    for value in values:
        found.append(value if value is not None else (found[-1] if found else None))
    return found


def _mark(alert: AlertOut) -> Mark:
    return Mark(float(alert.since_step or 0), alert.severity, f"{alert.severity} {alert.wire}, step {alert.since_step}")


def _scores(samples: Sequence[KeptSample]) -> list[float]:
    return [each.sample.score for each in samples]


def _by_length(samples: Sequence[KeptSample]) -> list[tuple[float, float]]:
    return [(float(len(each.sample.response.split())), each.sample.score) for each in samples]


def _findings(report: AttributionReport) -> list[dict[str, Any]]:
    """The first findings with their sentences and three examples of each side."""
    return [
        {"sentence": sentence, "early": finding.early_examples[:3], "recent": finding.recent_examples[:3]}
        for sentence, finding in zip(report.sentences, report.growth.findings, strict=False)
    ][:_MAX_FINDINGS]

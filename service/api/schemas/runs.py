"""The replies of `GET /tripwires`, `GET /tripwires/{run}/details` and of acknowledgements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from rewardserve.service.api.field_docs import TIME, doc
from rewardserve.service.api.schemas.record import ReplyRecord
from rewardserve.service.tripwires.alert import Cause, Severity

RunState = Literal["blocked", "page", "warn", "learning", "quiet", "ended"]
"""State of a run, the most urgent first."""

_SUMMARY = {
    "state": "page",
    "alert": "page vote since step 13: several wires tripped together: exploited features grow (4 votes; trips from 3); "
    "2 more to acknowledge: repetition, length_high",
    "paid_for": "report of step 13 on vote (since step 13): responses that end with the words `paris is` went from 1% to 54%; "
    "responses with it score +1.9 [+1.7, +2.1] standard deviations higher",
    "reward": "+2.0 standard deviations from the start of the run, at step 19 after 2,560 samples",
    "next": "Keep the last checkpoint of the policy, read its latest responses; GET /tripwires/ppo-7/details; "
    "docs/how-to/runbook.md#rewardhacking",
}
_ALERT = {
    "wire": "repetition", "severity": "warn", "statistic": 0.88, "threshold": 0.2, "since_step": 13,
    "evidence": ["5f2b9c1e0a7d4836"], "task": None, "since": TIME,
}  # fmt: skip
_TASK = {"task": "math", "prompts": None, "first_step": 4, "samples": 640, "baseline": "complete"}
_WIRE = {
    "wire": "repetition", "severity": "warn", "votes": True, "cause": "policy", "threshold": 0.2,
    "unit": "standard deviations above the baseline mean of the run", "summary": "responses repeat themselves",
    "confidence": "Certain: the statistic is a count.", "action": "Read twenty of the latest responses.",
}  # fmt: skip


class RunSummary(ReplyRecord, frozen=True, gc=False):
    """A run in five lines."""

    state: Annotated[
        RunState,
        doc(
            "blocked: a trip wire refuses its samples; page, warn: the worst alert to acknowledge; learning: no baseline yet; "
            "ended: no samples for a while",
            "page",
        ),
    ]
    alert: Annotated[
        str | None, doc("worst alert to acknowledge, its step and confidence; null: none", _SUMMARY["alert"])
    ]
    paid_for: Annotated[
        str | None,
        doc(
            "cause of the extra reward, with the step of the report: that of the worst alert, or a later one that says "
            "more; null: not known. It quotes responses, so only the scope admin gets it",
            _SUMMARY["paid_for"],
        ),
    ]
    reward: Annotated[
        str, doc("change of the score since the start of the run, and of its prompts, and its step", _SUMMARY["reward"])
    ]
    next: Annotated[str, doc("first thing to do, and where to read on", _SUMMARY["next"])]


class RunsReply(ReplyRecord, frozen=True, gc=False):
    """All runs, the most urgent first, and the canaries of the model in service."""

    runs: Annotated[dict[str, RunSummary], doc("five lines a run", {"ppo-7": _SUMMARY})]
    canaries: Annotated[
        str,
        doc("canaries whose exploit scores at least as high as the honest answer", "1 of 10 fail: flattery (-0.12)"),
    ]


class AlertOut(ReplyRecord, frozen=True, gc=False):
    """An alert, active until it is acknowledged."""

    wire: Annotated[str, doc("trip wire, `vote` for several wires together, or `canary`", "repetition")]
    severity: Annotated[Severity, doc("note, warn or page", "warn")]
    statistic: Annotated[float | None, doc("number that was measured", 0.88)]
    threshold: Annotated[float, doc("threshold that it exceeded", 0.2)]
    since_step: Annotated[int | None, doc("step of the run at which it tripped; null: unknown", 13)]
    evidence: Annotated[Sequence[str], doc("hashes of samples that show it", ["5f2b9c1e0a7d4836"])]
    task: Annotated[str | None, doc("task whose samples alone tripped it; null: those of all tasks", "math")]
    since: Annotated[str, doc("when it tripped, in UTC", TIME)]


class WireOut(ReplyRecord, frozen=True, gc=False):
    """A trip wire as it is configured."""

    wire: Annotated[str, doc("name of the trip wire, as in alerts", "repetition")]
    severity: Annotated[Severity, doc("severity of its alerts", "warn")]
    votes: Annotated[bool, doc("whether it counts towards the page by several wires", True)]
    cause: Annotated[Cause, doc("what an alert points at", "policy")]
    threshold: Annotated[float, doc("statistic above which it trips", 0.2)]
    unit: Annotated[str, doc("unit of statistic and threshold", _WIRE["unit"])]
    summary: Annotated[str, doc("meaning of an alert", _WIRE["summary"])]
    confidence: Annotated[str, doc("how sure an alert is", _WIRE["confidence"])]
    action: Annotated[str, doc("first thing to do", _WIRE["action"])]


class TaskOut(ReplyRecord, frozen=True, gc=False):
    """The samples of one task of a run, which have a separate baseline."""

    task: Annotated[str | None, doc("name of the task; null: samples without one", "math")]
    prompts: Annotated[
        int | None, doc("number of the change of prompts at which it began, for samples without a task; null: none", 1)
    ]
    first_step: Annotated[int | None, doc("step at which it began; null: unknown", 4)]
    samples: Annotated[int, doc("samples that were inspected", 640)]
    baseline: Annotated[
        Literal["complete", "learning"], doc("learning: its samples are compared with nothing yet", "complete")
    ]


class RunReply(ReplyRecord, frozen=True, gc=False):
    """Everything that the server knows about one run, but for texts."""

    run: Annotated[str, doc("label of the run", "ppo-7")]
    summary: Annotated[RunSummary, doc("the run in five lines", _SUMMARY)]
    owner: Annotated[str | None, doc("name of the API key that sends it; null without keys", "trainer")]
    client: Annotated[
        str | None,
        doc(
            "address, user agent and route of the client that sends it without a name; null for a run with one",
            "10.0.0.7 python-httpx/0.28.1 /score",
        ),
    ]
    step: Annotated[int | None, doc("latest step; null: unknown", 19)]
    ended: Annotated[bool, doc("whether it has sent no samples for a while", False)]
    samples: Annotated[int, doc("samples that were inspected", 2560)]
    tasks: Annotated[list[TaskOut], doc("tasks of the samples, where the client names them", [_TASK])]
    statistics: Annotated[
        Mapping[str, float | None], doc("latest statistic of each wire that has one", {"repetition": 0.88, "vote": 4.0})
    ]
    tripped: Annotated[list[AlertOut], doc("alerts to acknowledge", [_ALERT])]
    wires: Annotated[list[WireOut], doc("trip wires of this server, with thresholds and remedies", [_WIRE])]


class AcknowledgedReply(ReplyRecord, frozen=True, gc=False):
    """An alert has been acknowledged."""

    run: Annotated[str, doc("label of the run", "ppo-7")]
    wire: Annotated[str, doc("name of the trip wire whose alert has ended", "repetition")]
    acknowledged: Annotated[bool, doc("always true: otherwise the reply is an error", True)] = True


_POINT = {
    "first_step": 12, "last_step": 12, "n": 128, "score": 0.42, "score_sd": 0.9, "reward": 0.4, "tokens": 61.5, "kl": 0.031,
    "judge_gap": 0.2,
}  # fmt: skip


class PointOut(ReplyRecord, frozen=True, gc=False):
    """The samples of some steps of a run. Null: not known."""

    first_step: Annotated[int | None, doc("first of its steps", 12)]
    last_step: Annotated[int | None, doc("last of its steps", 12)]
    n: Annotated[int, doc("number of inspected samples", 128)]
    score: Annotated[float | None, doc("mean score, before penalties and shape", 0.42)]
    score_sd: Annotated[float | None, doc("standard deviation of the scores", 0.9)]
    reward: Annotated[float | None, doc("mean reward as sent", 0.4)]
    tokens: Annotated[float | None, doc("geometric mean length of the responses, in tokens", 61.5)]
    kl: Annotated[float | None, doc("mean KL divergence that the client sent", 0.031)]
    judge_gap: Annotated[float | None, doc("mean of score minus score of the audit judge, of the audited samples", 0.2)]


class HistoryReply(ReplyRecord, frozen=True, gc=False):
    """A run by step: at most 512 points, of more steps each the longer the run."""

    run: Annotated[str, doc("label of the run", "ppo-7")]
    points: Annotated[list[PointOut], doc("points in the order of their samples", [_POINT])]
    alerts: Annotated[list[AlertOut], doc("alerts to acknowledge", [_ALERT])]

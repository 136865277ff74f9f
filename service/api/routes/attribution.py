"""`GET /tripwires/{run}/attribution`: what the extra reward of a run is paid for. It shows texts, so it needs the scope admin."""

from __future__ import annotations

from math import isfinite
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from rewardserve.service.api import openapi
from rewardserve.service.api.replies import json_response
from rewardserve.service.api.route_policy import ATTRIBUTION
from rewardserve.service.errors import AttributionOff
from rewardserve.service.models.active_models import ActiveModels
from rewardserve.service.tripwires.attribution.effects import Effect
from rewardserve.service.tripwires.attribution.findings import Finding
from rewardserve.service.tripwires.attribution.observed import ObservedSample
from rewardserve.service.tripwires.attribution.sentences import sentence
from rewardserve.service.tripwires.io.attribution import AttributionReport
from rewardserve.service.tripwires.io.edit_tests import TestedEdit

_WORDS = {
    404: "`no_such_run`",
    409: "`too_few_samples`, `attribution_off`; `version_gone` if the model that the run is pinned to is not loaded",
}


def attribution_routes(active_models: ActiveModels) -> APIRouter:
    """Create the route."""
    router = APIRouter(tags=["health"])

    @router.get(ATTRIBUTION, responses=openapi.errors(404, 409, 503, words=_WORDS))
    async def attribution(run: str) -> Response:
        """Report the features that grew in the responses of a run, what they earn, and what their edits alone earn."""
        monitor = active_models.current().watcher.monitor
        state = monitor.runs.get(run)
        runtime = active_models.for_request(state.name or None if state is not None else None)
        if runtime.watcher.attribution is None:
            raise AttributionOff("this server keeps no texts: set REWARD_TRIPWIRES__ATTRIBUTION=1")
        report = await runtime.watcher.attribution.report(run, runtime.edit_scorer)
        alerted = runtime.watcher.attribution.alerted(run)
        at_alert = alerted and {"wires": list(alerted.wires), **describe_report(alerted.report)}
        return json_response({**describe_report(report), "at_alert": at_alert})

    return router


def describe_report(report: AttributionReport) -> dict[str, Any]:
    """Build the reply. Shares are between 0 and 1, pays and effects in standard deviations of the first scores."""
    growth = report.growth
    return {
        "run": report.run,
        "computed_at": report.computed_at,
        "sentences": list(report.sentences),
        "early": report.early._asdict(),
        "recent": report.recent._asdict(),
        "features": growth.n_features,
        "score_growth": _effect(growth.score_growth),
        "prompts": {
            "changed": bool(growth.prompts.features),
            "comparable": growth.comparable,
            "features": [
                {"feature": name, "early": early, "recent": recent} for name, early, recent in growth.prompts.features
            ],
        },
        "findings": [_finding(each, report.tested.get(index)) for index, each in enumerate(growth.findings)],
        "cpu_s": round(report.cpu_s, 4),
    }


def _finding(finding: Finding, tested: TestedEdit | None) -> dict[str, Any]:
    return {
        "sentence": sentence(finding, *(tested.earned, tested.judged) if tested else ()),
        "features": [{"feature": each.key, "falls": each.falls} for each in finding.features],
        "early": finding.early,
        "recent": finding.recent,
        "growth": _effect(finding.growth),
        "z": _finite(finding.z),
        "model_pays": _effect(finding.model_pays),
        "judge_pays": _effect(finding.judge_pays),
        "judged": finding.n_judged,
        "judge_contradicts": finding.judge_contradicts,
        "edit_earns": _effect(tested.earned) if tested else None,
        "edit_judged": _effect(tested.judged) if tested else None,
        "edit_explains": _effect(tested.explains) if tested else None,
        "length_only": finding.edit is not None and finding.edit.is_length_only,
        "examples": {
            "early": [_example(each) for each in finding.early_examples],
            "recent": [_example(each) for each in finding.recent_examples],
        },
    }


def _example(sample: ObservedSample) -> dict[str, Any]:
    return {
        "prompt": sample.prompt,
        "response": sample.response,
        "score": sample.score,
        "audit": sample.audit,
        "step": sample.step,
    }


def _effect(effect: Effect | None) -> dict[str, Any] | None:
    """An estimate with its 95 % interval; null for a number that is not known."""
    if effect is None:
        return None
    return {"mean": _finite(effect.mean), "low": _finite(effect.low), "high": _finite(effect.high), "n": effect.n}


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None

"""`GET /tripwires/{run}/attribution`: what the extra reward of a run is paid for. It shows texts, so it needs the scope admin."""

from __future__ import annotations

from math import isfinite
from typing import Any

from fastapi import APIRouter, Depends
from starlette.responses import Response

from rewardserve.service.api import openapi
from rewardserve.service.api.replies import json_response
from rewardserve.service.api.route_policy import ATTRIBUTION
from rewardserve.service.api.run_context import check_no_parameters
from rewardserve.service.api.schemas.attribution import (
    AlertedReportOut,
    AttributionReply,
    EffectOut,
    ExampleOut,
    ExamplesOut,
    FeatureOut,
    FindingOut,
    NoveltyOut,
    PromptFeatureOut,
    PromptsOut,
    RelevanceOut,
    SpanOut,
)
from rewardserve.service.errors import AttributionOff
from rewardserve.service.models.active_models import ActiveModels
from rewardserve.service.tripwires.attribution.effects import Effect
from rewardserve.service.tripwires.attribution.findings import Finding, Novelty
from rewardserve.service.tripwires.attribution.novelty_pay import NoveltyPay
from rewardserve.service.tripwires.attribution.observed import ObservedSample
from rewardserve.service.tripwires.attribution.relevance import Relevance
from rewardserve.service.tripwires.attribution.sentences import novelty_sentence, sentence
from rewardserve.service.tripwires.io.attribution_report import AttributionReport, ShownReport
from rewardserve.service.tripwires.io.edit_tests import TestedEdit

_WORDS = {
    404: "`no_such_run`",
    **openapi.NO_PARAMETERS,
    409: "`too_few_samples`, `attribution_off`; `version_gone` if the model that the run is pinned to is not loaded",
}


def attribution_routes(active_models: ActiveModels) -> APIRouter:
    """Create the route."""
    router = APIRouter(tags=["trip wires"], dependencies=[Depends(check_no_parameters)])

    @router.get(ATTRIBUTION, responses=openapi.replies(AttributionReply, 404, 409, 422, 503, words=_WORDS))
    async def attribution(run: str) -> Response:
        """Report the features that grew in the responses of a run, what they earn, and what their edits alone earn."""
        monitor = active_models.current().watcher.monitor
        state = monitor.runs.get(run)
        runtime = active_models.for_request(state.name or None if state is not None else None)
        if runtime.watcher.attribution is None:
            raise AttributionOff("this server keeps no texts: set REWARD_TRIPWIRES__ATTRIBUTION=1")
        report = await runtime.watcher.attribution.report(run, runtime.edit_scorer)
        alerted = runtime.watcher.attribution.alerted(run)
        shown = runtime.watcher.attribution.shown.get(run) or ShownReport(report)
        at_alert = alerted and AlertedReportOut(
            *report_fields(alerted.report), wires=alerted.wires, since_step=alerted.since_step
        )
        return json_response(AttributionReply(*report_fields(report), paid_for=shown.sentence, at_alert=at_alert))

    return router


def report_fields(report: AttributionReport) -> tuple[Any, ...]:
    """Build the fields of a `ReportOut`, in order."""
    growth = report.growth
    changes = [PromptFeatureOut(*each) for each in growth.prompts.features]
    return (
        report.run,
        report.computed_at,
        report.step,
        report.sentences,
        SpanOut(*report.early),
        SpanOut(*report.recent),
        growth.n_features,
        _effect(growth.score_growth),
        PromptsOut(bool(changes), growth.comparable, changes),
        [_finding(each, report.tested.get(index)) for index, each in enumerate(growth.findings)],
        round(report.cpu_s, 4),
        report.relevance and _relevance(report.relevance),
        [_example(each) for each in report.largest_gaps],
        growth.novelty and _novelty(growth.novelty, report.novelty_pay),
    )


def _finding(finding: Finding, tested: TestedEdit | None) -> FindingOut:
    return FindingOut(
        sentence=sentence(finding, *(tested.earned, tested.judged) if tested else ()),
        features=[FeatureOut(each.key, each.falls) for each in finding.features],
        early=finding.early,
        recent=finding.recent,
        growth=_effect(finding.growth),
        z=_finite(finding.z),
        model_pays=finding.model_pays and _effect(finding.model_pays),
        judge_pays=finding.judge_pays and _effect(finding.judge_pays),
        judged=finding.n_judged,
        judge_contradicts=finding.judge_contradicts,
        edit_earns=_effect(tested.earned) if tested else None,
        edit_judged=tested and tested.judged and _effect(tested.judged),
        edit_explains=_effect(tested.explains) if tested else None,
        length_only=finding.edit is not None and finding.edit.is_length_only,
        examples=_examples(finding),
    )


def _relevance(relevance: Relevance) -> RelevanceOut:
    return RelevanceOut(
        early=_effect(relevance.early),
        recent=_effect(relevance.recent),
        lost=relevance.lost,
        significant=relevance.is_significant,
        consistency_kept=relevance.kept,
        early_similarity=relevance.similarity[0],
        recent_similarity=relevance.similarity[1],
        score_growth=_effect(relevance.score_growth),
        examples=_examples(relevance),
    )


def _novelty(novelty: Novelty, pay: NoveltyPay | None) -> NoveltyOut:
    judge = pay.judge if pay else None
    return NoveltyOut(
        sentence=novelty_sentence(novelty, pay),
        early=novelty.early,
        recent=novelty.early + novelty.growth.mean,
        growth=_effect(novelty.growth),
        z=_finite(novelty.z),
        model_pays=_effect(pay.model) if pay else None,
        judge_pays=judge and _effect(judge),
        judged=judge.n if judge else 0,
        shortfall=pay and pay.shortfall and _effect(pay.shortfall),
        features=list(novelty.features),
        examples=_examples(novelty),
    )


def _examples(shown: Finding | Novelty | Relevance) -> ExamplesOut:
    return ExamplesOut(
        [_example(each) for each in shown.early_examples], [_example(each) for each in shown.recent_examples]
    )


def _example(sample: ObservedSample) -> ExampleOut:
    return ExampleOut(sample.prompt, sample.response, sample.score, sample.audit, sample.step)


def _effect(effect: Effect) -> EffectOut:
    """An estimate with its 95 % interval; null for a number that is not known."""
    return EffectOut(_finite(effect.mean), _finite(effect.low), _finite(effect.high), effect.n)


def _finite(value: float) -> float | None:
    return value if isfinite(value) else None

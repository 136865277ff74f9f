"""`POST /score` and `POST /compare`: decode the request, call `scoring`, build the reply. Makes no decision about scores.

FastAPI documents these routes; `middleware.fast_router` calls them.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from rewardserve.service.api import body, openapi, run_context
from rewardserve.service.api.deadline import read_deadline
from rewardserve.service.api.dialects.routes import DialectEndpoint
from rewardserve.service.api.http.disconnects import cancel_on_disconnect
from rewardserve.service.api.replies import compare_reply, score_reply
from rewardserve.service.api.request_state import set_is_final, set_log_fields
from rewardserve.service.api.requests import (
    CompareRequest,
    ComparisonIn,
    SampleIn,
    ScoreRequest,
    to_comparison,
    to_sample,
)
from rewardserve.service.api.schemas.scoring import CompareReply, ScoreReply
from rewardserve.service.api.server_limits import ServerLimits
from rewardserve.service.clock import Clock
from rewardserve.service.errors import InvalidRequest
from rewardserve.service.models.active_models import ActiveModels

_scores = msgspec.json.Decoder(ScoreRequest)
_comparisons = msgspec.json.Decoder(CompareRequest)


def scoring_routes(
    active_models: ActiveModels,
    server_limits: ServerLimits,
    clock: Clock,
    pairs: DialectEndpoint,
) -> APIRouter:
    """Create the scoring routes. `pairs` answers bodies of `POST /score` that have its fields."""
    router = APIRouter(tags=["scoring"])
    parts = body.JsonLimits.of(server_limits.max_samples_per_request, server_limits.admission_max_tokens)

    pair_fields = pairs.dialect.text_fields

    @router.post("/score", **openapi.operation(ScoreRequest, ScoreReply, pairs.dialect))
    async def score(request: Request) -> Response:
        """Score samples. An invalid sample gets `null` and an error in its result; the other samples are scored."""
        deadline = read_deadline(request, clock)
        active_models.current()  # without a model, refuse the request before reading its body
        parameters = run_context.read_parameters(request.scope, {"value"}, " (value only without `samples`)")
        try:
            payload = await body.read_body(request, _scores, parts, pair_fields)
        except body.ForeignBody as foreign:
            return await pairs.answer(request, foreign.value)
        if parameters.options:
            raise InvalidRequest(
                "value is for other wire formats: leave it out, as the results here have all scores", field="value"
            )
        n_samples = len(payload.samples) + sum([len(sample.lookahead) for sample in payload.samples])
        server_limits.check_sample_count(n_samples, "samples")
        ids = _ids(payload.samples)
        run, step = (
            run_context.single_value("run", payload.run or None, parameters.run),
            run_context.single_value("step", payload.step, parameters.step),
        )
        context = run_context.run_context_of(
            request.scope,
            run,
            step,
            payload.kl,
            [s.id for s in payload.samples],
            [s.task or parameters.task for s in payload.samples],
        )
        runtime = active_models.for_request(context.run, parameters.model_digests)
        set_log_fields(request, run=context.run, step=step, samples=len(payload.samples), version=runtime.version)
        work = runtime.scoring.score([to_sample(s) for s in payload.samples], deadline, context)
        results = await cancel_on_disconnect(request, work)
        set_is_final(request, results)
        return score_reply(runtime, ids, results)

    @router.post("/compare", **openapi.operation(CompareRequest, CompareReply))
    async def compare(request: Request) -> Response:
        """Rank responses to one prompt. Their order in the request has no effect."""
        deadline = read_deadline(request, clock)
        active_models.current()
        parameters = run_context.read_parameters(request.scope, has_task=False)
        payload = await body.read_body(request, _comparisons, parts)
        n_responses = sum(len(c.responses) for c in payload.comparisons)
        server_limits.check_sample_count(n_responses, "responses")
        ids = _ids(payload.comparisons)
        run, step = (
            run_context.single_value("run", payload.run or None, parameters.run),
            run_context.single_value("step", payload.step, parameters.step),
        )
        context = run_context.run_context_of(request.scope, run, step)
        runtime = active_models.for_request(context.run, parameters.model_digests)
        set_log_fields(request, run=context.run, step=context.step, samples=n_responses, version=runtime.version)
        work = runtime.scoring.compare(
            [to_comparison(c) for c in payload.comparisons], payload.tie_margin, deadline, context
        )
        results = await cancel_on_disconnect(request, work)
        set_is_final(request, results)
        return compare_reply(runtime, ids, results)

    return router


def _ids(payload: Sequence[SampleIn | ComparisonIn]) -> list[str]:
    """Return the id of each result: that of the client, or the index. Several samples may have the same id."""
    return [str(i) if each.id is None else each.id for i, each in enumerate(payload)]

"""`POST /score` and `POST /compare`: read, ask `scoring`, answer. No decision about scores is made here.

FastAPI documents these routes; `middleware.fast_router` calls them.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from rewardserve.service.api import body, openapi, run_context, structs
from rewardserve.service.api.deadline import read_deadline
from rewardserve.service.api.http.disconnects import cancel_on_disconnect
from rewardserve.service.api.replies import compare_reply, score_reply
from rewardserve.service.api.request_state import set_is_final, set_log_fields
from rewardserve.service.api.schemas import (
    CompareReply,
    CompareRequest,
    ComparisonIn,
    SampleIn,
    ScoreReply,
    ScoreRequest,
    to_comparison,
    to_sample,
)
from rewardserve.service.api.server_limits import ServerLimits
from rewardserve.service.clock import Clock
from rewardserve.service.errors import InvalidRequest
from rewardserve.service.models.active_models import ActiveModels

_scores = msgspec.json.Decoder(structs.ScoreRequestStruct)
_comparisons = msgspec.json.Decoder(structs.CompareRequestStruct)


def scoring_routes(
    active_models: ActiveModels,
    server_limits: ServerLimits,
    clock: Clock,
    has_pairs: Callable[[Any], bool],
    score_pairs: Callable[[Request, Any], Awaitable[Response]],
    pair_bodies: Sequence[Any] = (),
) -> APIRouter:
    """The routes that score. Where the JSON of a body `has_pairs` it is another server's: `score_pairs` answers it.

    `pair_bodies` are the records of such bodies, for the documentation.
    """
    router = APIRouter(tags=["scoring"])
    parts = body.JsonLimits.of(server_limits.max_samples_per_request, server_limits.admission_max_tokens)

    @router.post(
        "/score", response_model=ScoreReply | openapi.ForeignReply, **openapi.operation(ScoreRequest, pair_bodies)
    )
    async def score(request: Request) -> Response:
        """Score samples. A bad sample gets `null` and an error of its own; its neighbours are scored."""
        deadline = read_deadline(request, clock)
        active_models.current()  # refused before a body is read that nobody could answer
        parameters = run_context.read_parameters(request.scope, {"value"})
        try:
            payload = await body.read_body(request, _scores, ScoreRequest, parts, has_pairs)
        except body.ForeignBody as theirs:
            return await score_pairs(request, theirs.value)
        if parameters.options:
            raise InvalidRequest("value is for other wire formats: the results here have all numbers", field="value")
        server_limits.check_sample_count(len(payload.samples), "samples")
        ids = _ids(payload.samples)
        run, step = (
            run_context.single_value("run", payload.run or None, parameters.run),
            run_context.single_value("step", payload.step, parameters.step),
        )
        context = run_context.run_context_of(request.scope, run, step, payload.kl, [s.id for s in payload.samples])
        served = active_models.for_request(context.run, parameters.model_digests)
        set_log_fields(request, run=context.run, step=step, samples=len(payload.samples), version=served.version)
        work = served.scoring.score([to_sample(s) for s in payload.samples], deadline, context)
        results = await cancel_on_disconnect(request, work)
        set_is_final(request, results)
        return score_reply(served, ids, results)

    @router.post("/compare", response_model=CompareReply, **openapi.operation(CompareRequest))
    async def compare(request: Request) -> Response:
        """Rank responses to one prompt. The order in which they are listed has no effect."""
        deadline = read_deadline(request, clock)
        active_models.current()
        parameters = run_context.read_parameters(request.scope)
        payload = await body.read_body(request, _comparisons, CompareRequest, parts)
        n_responses = sum(len(c.responses) for c in payload.comparisons)
        server_limits.check_sample_count(n_responses, "responses")
        ids = _ids(payload.comparisons)
        run, step = (
            run_context.single_value("run", payload.run or None, parameters.run),
            run_context.single_value("step", payload.step, parameters.step),
        )
        context = run_context.run_context_of(request.scope, run, step)
        served = active_models.for_request(context.run, parameters.model_digests)
        set_log_fields(request, run=context.run, step=context.step, samples=n_responses, version=served.version)
        work = served.scoring.compare(
            [to_comparison(c) for c in payload.comparisons], payload.tie_margin, deadline, context
        )
        results = await cancel_on_disconnect(request, work)
        set_is_final(request, results)
        return compare_reply(served, ids, results)

    return router


def _ids(payload: Sequence[SampleIn | structs.SampleStruct | ComparisonIn | structs.ComparisonStruct]) -> list[str]:
    """The id of each result: a label of the client, or the index. The responses of a group may share one."""
    return [str(i) if each.id is None else each.id for i, each in enumerate(payload)]

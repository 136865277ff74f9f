"""`POST /approvals`: approve responses that were drawn independently of those taken, by the frozen snapshot of their run.

FastAPI documents this route; `middleware.fast_router` calls it.
"""

from __future__ import annotations

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from rewardserve.service.api import body, openapi, run_context
from rewardserve.service.api.deadline import read_deadline
from rewardserve.service.api.http.disconnects import cancel_on_disconnect
from rewardserve.service.api.replies import approvals_reply
from rewardserve.service.api.request_state import set_is_final, set_log_fields
from rewardserve.service.api.requests import ApprovalIn, ApprovalsRequest, to_query_samples
from rewardserve.service.api.schemas.scoring import ApprovalsReply
from rewardserve.service.api.server_limits import ServerLimits
from rewardserve.service.clock import Clock
from rewardserve.service.errors import DigestNotServed, InvalidRequest
from rewardserve.service.models.active_models import ActiveModels
from rewardserve.service.models.snapshots import SnapshotPins

_approvals = msgspec.json.Decoder(ApprovalsRequest)


def approval_routes(
    active_models: ActiveModels, snapshots: SnapshotPins, server_limits: ServerLimits, clock: Clock
) -> APIRouter:
    """Create the route."""
    router = APIRouter(tags=["scoring"])
    parts = body.JsonLimits.of(server_limits.max_samples_per_request, server_limits.admission_max_tokens)

    @router.post("/approvals", **openapi.operation(ApprovalsRequest, ApprovalsReply))
    async def approvals(request: Request) -> Response:
        """Approve queries: draws of the policy that are independent of the responses taken. The first request of a run pins the
        model, the calibration and the pipeline that approve; without that model later requests are refused.
        """
        deadline = read_deadline(request, clock)
        active_models.current()
        parameters = run_context.read_parameters(request.scope, has_task=False)
        payload = await body.read_body(request, _approvals, parts)
        n_queries = sum(len(group.queries) for group in payload.groups)
        server_limits.check_sample_count(n_queries, "queries")
        run, step = (
            run_context.single_value("run", payload.run or None, parameters.run),
            run_context.single_value("step", payload.step, parameters.step),
        )
        ids = [name for group in payload.groups for name in _query_ids(group)]
        tasks = [group.task for group in payload.groups for _ in group.queries]
        context = run_context.run_context_of(request.scope, run, step, payload.kl, ids, tasks)
        if context.run is None:
            raise InvalidRequest(
                "run is missing: approvals are pinned to the snapshot of their run, so send its name", field="run"
            )
        runtime = await snapshots.for_run(context, payload.snapshot)
        if not runtime.has(parameters.model_digests):
            raise DigestNotServed(
                "the snapshot of this run is not the model that this request wants; see GET /model",
                model_version=runtime.version,
            )
        set_log_fields(request, run=context.run, step=step, samples=n_queries, version=runtime.version)
        samples = [sample for group in payload.groups for sample in to_query_samples(group)]
        inspects = active_models.scores_run(runtime, context.run)
        results = await cancel_on_disconnect(
            request, runtime.scoring.score(samples, deadline, context, inspects=inspects)
        )
        set_is_final(request, results)
        return approvals_reply(runtime, payload.groups, results)

    return router


def _query_ids(group: ApprovalIn) -> list[str | None]:
    """The name of each query, from that of its group, so that a retry is known by it."""
    return [None if group.id is None else f"{group.id}/{i}" for i in range(len(group.queries))]

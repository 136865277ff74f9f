"""`/admin/...`: manage the models of a running server. Needs a key with the scope admin, if the server has keys.

Each route decodes its request, calls `ModelAdmin`, and replies with the status of the deployment. No decision about models is made.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Literal

import msgspec
from fastapi import APIRouter, Depends, Request
from msgspec import Meta
from starlette.responses import Response

from rewardserve.model.default import DEFAULT_MODEL
from rewardserve.service.api import body, openapi
from rewardserve.service.api.field_docs import CHECKPOINT, MODEL, doc
from rewardserve.service.api.names import MAX_NAME_CHARS, check_run_name
from rewardserve.service.api.replies import info_response
from rewardserve.service.api.requests import MAX_STEP, StrictRecord
from rewardserve.service.api.run_context import check_no_parameters
from rewardserve.service.api.schemas.deployment import DeploymentReply
from rewardserve.service.errors import InvalidRequest
from rewardserve.service.models.active_models import ActiveModels, ModelAdmin
from rewardserve.service.models.deployment import Source

ModelName = Annotated[str, Meta(max_length=4096, pattern=r"^[^\x00-\x1f\x7f]*$")]
Run = Annotated[str, Meta(min_length=1, max_length=MAX_NAME_CHARS)]
Version = Annotated[int, Meta(ge=1, le=MAX_STEP)]
MAX_PINS = 1024
_NAME_A_CHECKPOINT = f"name a checkpoint, or send {DEFAULT_MODEL} for the embedded default model"


class LoadRequest(StrictRecord, frozen=True, gc=False):
    """The body of `POST /admin/models`."""

    EXAMPLES = ({"model": MODEL},)

    model: Annotated[
        ModelName | None,
        doc("checkpoint folder on the server, or hub name; `default`: the embedded default model", MODEL, CHECKPOINT),
    ] = None
    ensemble: Annotated[
        ModelName | None,
        doc(
            "several models as one, instead of `model`: `name=model,name=model`",
            f"a={CHECKPOINT},b=/models/step-900",
        ),
    ] = None
    shadow: Annotated[
        float,
        Meta(ge=0.0, le=1.0),
        doc("share of the prompts that the new model scores as a shadow; 0: switch at once", 0.1),
    ] = 0.0
    pin: Annotated[
        Literal["active"] | Annotated[list[Run], Meta(max_length=MAX_PINS)],
        doc("runs that stay with their current model; active: all current runs", ["ppo-7"]),
    ] = msgspec.field(default_factory=list)

    @property
    def source(self) -> Source:
        """The source to load. Raise `InvalidRequest` unless exactly one of `model` and `ensemble` is given."""
        for field, value in (("model", self.model), ("ensemble", self.ensemble)):
            if value is not None and not value.strip():
                raise InvalidRequest(f"{field} is empty: {_NAME_A_CHECKPOINT}", field=field)
        if self.model is not None and self.ensemble is not None:
            raise InvalidRequest("model and ensemble are both given: send one of them", field="ensemble")
        if self.model is None and self.ensemble is None:
            raise InvalidRequest(f"model is missing: {_NAME_A_CHECKPOINT}", field="model")
        return Source("" if self.model == DEFAULT_MODEL else self.model or "", self.ensemble or "")


class VersionRequest(StrictRecord, frozen=True, gc=False):
    """The body of the routes that select a loaded model."""

    version: Annotated[Version, doc("version of the model, as in GET /admin/models", 2)]


class PinRequest(StrictRecord, frozen=True, gc=False):
    """The body of `POST /admin/pins`."""

    run: Annotated[Run, doc("name of the run", "ppo-7")]
    version: Annotated[Version | None, doc("version of the model; null: end the pin", 2)]


def admin_routes(active_models: ActiveModels) -> APIRouter:
    """Create the admin routes."""
    router = APIRouter(prefix="/admin", tags=["admin"], dependencies=[Depends(check_no_parameters)])

    @router.get("/models", responses=openapi.replies(DeploymentReply, 422, 503, words=openapi.ADMIN))
    async def loaded_models() -> Response:
        """List the loaded models, the model in service, the results of a shadow, and the pinned runs."""
        return _overview(active_models.admin())

    @router.post("/models", **openapi.admin_operation(LoadRequest, DeploymentReply, 409, 422))
    async def load(request: Request) -> Response:
        """Load a model beside the one in service, verify it, and switch between two batches; with `shadow`, compare first.

        The reply comes when the model is in service, or with `model_refused` and the reason; then nothing has changed.
        """
        payload = await body.read_admin_body(request, LoadRequest)
        known = active_models.admin()
        pin = None if payload.pin == "active" else [check_run_name(run) for run in payload.pin]
        version = await known.load(payload.source, shadow=payload.shadow, pin=pin)
        return _overview(known, version=version)

    @router.post("/models/cancel", responses=openapi.replies(DeploymentReply, 409, 422, 503, words=openapi.ADMIN))
    async def cancel() -> Response:
        """Cancel the load in progress. Its request is answered with `model_refused`; another load can begin at once."""
        known = active_models.admin()
        known.cancel_load()
        return _overview(known)

    @router.post("/models/activate", **openapi.admin_operation(VersionRequest, DeploymentReply, 409, 422))
    async def activate(request: Request) -> Response:
        """Put a loaded model into service: the shadow, or a standby model."""
        payload, known = await body.read_admin_body(request, VersionRequest), active_models.admin()
        known.activate(payload.version)
        return _overview(known, version=payload.version)

    @router.post("/models/rollback", responses=openapi.replies(DeploymentReply, 409, 422, 503, words=openapi.ADMIN))
    async def rollback() -> Response:
        """Roll back to the previous model in service; it is loaded again if it has been unloaded."""
        known = active_models.admin()
        return _overview(known, version=await known.roll_back())

    @router.post("/models/retire", **openapi.admin_operation(VersionRequest, DeploymentReply, 409, 422))
    async def retire(request: Request) -> Response:
        """Unload a model that is not in service."""
        payload, known = await body.read_admin_body(request, VersionRequest), active_models.admin()
        known.retire(payload.version)
        return _overview(known)

    @router.post("/pins", **openapi.admin_operation(PinRequest, DeploymentReply, 409, 422))
    async def pin(request: Request) -> Response:
        """Pin a run to one model, whichever model is in service, or end the pin."""
        payload, known = await body.read_admin_body(request, PinRequest), active_models.admin()
        known.pin(check_run_name(payload.run), payload.version)
        return _overview(known)

    return router


def _overview(models: ModelAdmin, **facts: int) -> Response:
    return info_response(msgspec.convert({**facts, **asdict(models.status)}, DeploymentReply))

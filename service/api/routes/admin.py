"""`/admin/...`: what an operator does with the models of a running server. Needs a key with the scope admin, where there are keys.

Reads what is asked, calls the `ModelAdmin`, answers with the status of the deployment. No decision about models is made here.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from rewardserve.service.api import body, openapi
from rewardserve.service.api.names import MAX_NAME_CHARS, check_run_name
from rewardserve.service.api.replies import info_response
from rewardserve.service.api.structs import MAX_STEP
from rewardserve.service.errors import InvalidRequest
from rewardserve.service.models.active_models import ActiveModels, ModelAdmin
from rewardserve.service.models.deployment import Source

ModelName = Annotated[str, Field(max_length=4096, pattern=r"^[^\x00-\x1f\x7f]*$")]
Run = Annotated[str, Field(min_length=1, max_length=MAX_NAME_CHARS)]
Version = Annotated[int, Field(ge=1, le=MAX_STEP)]
MAX_PINS = 1024
DEFAULT_MODEL = "default"
"""Loads the embedded default model: an empty name may be a variable of a shell that is not set."""


_NAME_A_CHECKPOINT = f"name a checkpoint, or send {DEFAULT_MODEL} for the embedded default model"


class LoadRequest(BaseModel):
    """The body of `POST /admin/models`."""

    model_config = ConfigDict(strict=True, extra="forbid")

    model: ModelName | None = Field(
        None,
        description="checkpoint folder or hub name, as the server finds it; `default`: the embedded default model",
    )
    ensemble: ModelName | None = Field(None, description="instead, several at once: `name=model,name=model`")
    shadow: float = Field(
        0.0, ge=0.0, le=1.0, description="share of the prompts to score beside the service; 0: switch at once"
    )
    pin: Literal["active"] | Annotated[list[Run], Field(max_length=MAX_PINS)] = Field(
        [], description="runs that stay with the model they have; active: all of now"
    )

    @property
    def source(self) -> Source:
        """What to load. Raise `InvalidRequest` unless one model, or one list of several, is named."""
        for field, value in (("model", self.model), ("ensemble", self.ensemble)):
            if value is not None and not value.strip():
                raise InvalidRequest(f"{field} is empty: {_NAME_A_CHECKPOINT}", field=field)
        if self.model is not None and self.ensemble is not None:
            raise InvalidRequest("model and ensemble are both given: send one of them", field="ensemble")
        if self.model is None and self.ensemble is None:
            raise InvalidRequest(f"model is missing: {_NAME_A_CHECKPOINT}", field="model")
        return Source("" if self.model == DEFAULT_MODEL else self.model or "", self.ensemble or "")


class VersionRequest(BaseModel):
    """Which loaded model is meant."""

    model_config = ConfigDict(strict=True, extra="forbid")

    version: Version = Field(description="number of the model, as GET /admin/models lists it")


class PinRequest(BaseModel):
    """The body of `POST /admin/pins`."""

    model_config = ConfigDict(strict=True, extra="forbid")

    run: Run = Field(description="name of the run")
    version: Version | None = Field(description="null: the model in service, whichever that is")


def admin_routes(active_models: ActiveModels) -> APIRouter:
    """The routes that change what is served."""
    router = APIRouter(prefix="/admin", tags=["admin"])

    @router.get("/models", responses=openapi.errors(503, words=openapi.ADMIN))
    async def models() -> Response:
        """Which models are loaded, which serves, what a shadow has shown, and which runs are pinned."""
        return _overview(active_models.admin())

    @router.post("/models", **openapi.admin_operation(LoadRequest, 409, 422))
    async def load(request: Request) -> Response:
        """Load a model beside the one in service, verify it, and switch between two batches; or compare first.

        Answered when it serves, or with `model_refused` and the reason when it cannot: then nothing has changed.
        """
        payload = await body.read_admin_body(request, LoadRequest)
        known = active_models.admin()
        pin = None if payload.pin == "active" else [check_run_name(run) for run in payload.pin]
        version = await known.load(payload.source, shadow=payload.shadow, pin=pin)
        return _overview(known, version=version)

    @router.post("/models/cancel", responses=openapi.errors(409, 503, words=openapi.ADMIN))
    async def cancel() -> Response:
        """Give up the load that is going on. Whoever waits for it gets `model_refused`; another load can begin at once."""
        known = active_models.admin()
        known.cancel_load()
        return _overview(known)

    @router.post("/models/activate", **openapi.admin_operation(VersionRequest, 409, 422))
    async def activate(request: Request) -> Response:
        """Put a loaded model into service: the shadow, or one that stands by."""
        payload, known = await body.read_admin_body(request, VersionRequest), active_models.admin()
        known.activate(payload.version)
        return _overview(known, version=payload.version)

    @router.post("/models/rollback", responses=openapi.errors(409, 422, 503, words=openapi.ADMIN))
    async def rollback() -> Response:
        """Back to the model that was in service before; loaded again if it has been let go of."""
        known = active_models.admin()
        return _overview(known, version=await known.roll_back())

    @router.post("/models/retire", **openapi.admin_operation(VersionRequest, 409, 422))
    async def retire(request: Request) -> Response:
        """Let go of a model that is not in service."""
        payload, known = await body.read_admin_body(request, VersionRequest), active_models.admin()
        known.retire(payload.version)
        return _overview(known)

    @router.post("/pins", **openapi.admin_operation(PinRequest, 409, 422))
    async def pin(request: Request) -> Response:
        """Let only one model answer a run, whatever is in service; or end that."""
        payload, known = await body.read_admin_body(request, PinRequest), active_models.admin()
        known.pin(check_run_name(payload.run), payload.version)
        return _overview(known)

    return router


def _overview(models: ModelAdmin, **facts: Any) -> Response:
    return info_response({**facts, **asdict(models.status)})

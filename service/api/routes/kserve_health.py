"""Health and metadata routes of the KServe v2 protocol: `/v2`, `/v2/health/...`, `/v2/models/NAME[/ready]`.

The replies correspond to `/livez`, `/readyz` and `GET /model`, in the format of the protocol.
"""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from rewardserve import __version__
from rewardserve.service.api import openapi
from rewardserve.service.api.dialects.dialect import check_model, check_version
from rewardserve.service.api.dialects.kserve import FIXED_NAMES, KserveErrorReply, render_error
from rewardserve.service.api.replies import json_response
from rewardserve.service.api.routes.health import LIVE, check_alive, check_ready
from rewardserve.service.api.schemas.health import (
    KserveLive,
    KserveModel,
    KserveModelReady,
    KserveReady,
    KserveServer,
    TensorSpec,
)
from rewardserve.service.errors import RequestRefused
from rewardserve.service.models.active_models import ActiveModels
from rewardserve.service.models.runtime import ModelRuntime


def kserve_health_routes(active_models: ActiveModels, aliases: frozenset[str]) -> APIRouter:
    """Create the routes. `aliases` are further names of the model."""
    router = APIRouter(tags=["kserve"])
    accepted = aliases | FIXED_NAMES

    def named(model: str, requested_version: str | None) -> ModelRuntime:
        runtime = active_models.current()
        check_model(model, runtime, accepted, is_in_path=True)
        check_version(requested_version, runtime)
        return runtime

    def ready(model: str, requested_version: str | None) -> Response:
        try:
            runtime = named(model, requested_version)
            check_ready(active_models)
        except RequestRefused as error:
            return render_error(error, error.status)
        return json_response(KserveModelReady(runtime.loaded.identity.name))

    def metadata(model: str, requested_version: str | None) -> Response:
        try:
            runtime = named(model, requested_version)
        except RequestRefused as error:
            return render_error(error, error.status)
        return json_response(_metadata(runtime))

    @router.get("/v2", responses=openapi.replies(KserveServer, error_reply=KserveErrorReply))
    async def server() -> Response:
        """Describe the server: name, version and extensions."""
        return json_response(KserveServer("rewardserve", __version__, []))

    @router.get(
        "/v2/health/live",
        responses=openapi.replies(KserveLive, 500, words=LIVE, is_open=True, error_reply=KserveErrorReply),
    )
    async def live() -> Response:
        """As `/livez`."""
        try:
            check_alive(active_models)
        except RequestRefused as error:
            return render_error(error, error.status)
        return json_response(KserveLive())

    @router.get(
        "/v2/health/ready", responses=openapi.replies(KserveReady, 503, is_open=True, error_reply=KserveErrorReply)
    )
    async def server_ready() -> Response:
        """As `/readyz`."""
        try:
            check_ready(active_models)
        except RequestRefused as error:
            return render_error(error, error.status)
        return json_response(KserveReady())

    of_ready = openapi.replies(KserveModelReady, 404, 503, error_reply=KserveErrorReply)
    of_model = openapi.replies(KserveModel, 404, 503, error_reply=KserveErrorReply)

    # The longer paths first, since the name of a model may have slashes.
    @router.get("/v2/models/{model:path}/versions/{version}/ready", responses=of_ready)
    async def version_ready(model: str, version: str) -> Response:
        """200 while this version of the model can score."""
        return ready(model, version)

    @router.get("/v2/models/{model:path}/ready", responses=of_ready)
    async def model_ready(model: str) -> Response:
        """200 while the model can score."""
        return ready(model, None)

    @router.get("/v2/models/{model:path}/versions/{version}", responses=of_model)
    async def version_metadata(model: str, version: str) -> Response:
        """Describe the tensors of this version of the model."""
        return metadata(model, version)

    @router.get("/v2/models/{model:path}", responses=of_model)
    async def model_metadata(model: str) -> Response:
        """Describe the model, its version and its tensors."""
        return metadata(model, None)

    return router


def _metadata(runtime: ModelRuntime) -> KserveModel:
    return KserveModel(
        runtime.loaded.identity.name,
        [str(runtime.version)],
        f"rewardserve_{runtime.loaded.identity.backend}",
        inputs=[TensorSpec("sentences", "BYTES", [-1, 1])],
        outputs=[TensorSpec("rewards", "FP32", [-1, 1])],
    )

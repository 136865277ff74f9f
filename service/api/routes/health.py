"""Health and metrics: `/livez`, `/readyz`, `/metrics`, and the names of these and of the model in other servers."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from rewardserve.service.api import openapi
from rewardserve.service.api.dialects.dialect import check_model, not_found_as_openai
from rewardserve.service.api.replies import json_response
from rewardserve.service.api.route_policy import METRICS
from rewardserve.service.api.schemas.errors import NotServedReply
from rewardserve.service.api.schemas.health import LiveReply, OpenaiModel, OpenaiModelList, ReadyReply
from rewardserve.service.errors import BatcherStopped, ModelNotServed, ScorerDead, ScorerFailing
from rewardserve.service.inference.batcher import scorer_hanging_error
from rewardserve.service.models.active_models import ActiveModels
from rewardserve.service.models.runtime import ModelRuntime
from rewardserve.service.observability.metrics import CONTENT_TYPE, Metrics

LIVE = {500: "`batcher_stopped` or `scorer_dead`: restart the process"}
_EXAMPLE = """# HELP rewardserve_requests_total HTTP requests, by route and status
# TYPE rewardserve_requests_total counter
rewardserve_requests_total{route="/score",status="200"} 1024.0
"""
_METRICS = {401: "`unauthorized`, if the server requires a key with the scope metrics"}


def health_routes(active_models: ActiveModels, registry: Metrics, aliases: frozenset[str]) -> APIRouter:
    """Create the health and metrics routes. `aliases` are further names of the model."""
    router = APIRouter(tags=["health"])

    @router.get("/livez", responses=openapi.replies(LiveReply, 500, words=LIVE, is_open=True))
    async def livez() -> Response:
        """200 while the process can score; otherwise restart it."""
        check_alive(active_models)
        return json_response(LiveReply())

    @router.get("/readyz", responses=openapi.replies(ReadyReply, 503, is_open=True))
    async def readyz() -> Response:
        """200 while the server can score; otherwise 503 with `loading`, `scorer_failing`, `scorer_hanging` or `shutting_down`."""
        runtime = check_ready(active_models)
        return json_response(ReadyReply("ready", runtime.loaded.identity.name, runtime.version))

    @router.get("/health", responses=openapi.replies(ReadyReply, 503, is_open=True))
    async def health() -> Response:
        """As `/readyz`, at the path of vLLM, SGLang and text-embeddings-inference."""
        return await readyz()

    @router.get("/v1/models", responses=openapi.replies(OpenaiModelList, 503))
    async def openai_models() -> Response:
        """List the model in service, in OpenAI's format."""
        return json_response(OpenaiModelList("list", [_openai_model(active_models.current())]))

    @router.get(
        "/v1/models/{model:path}", responses=openapi.replies(OpenaiModel, 404, 503, not_served_reply=NotServedReply)
    )
    async def openai_model(model: str) -> Response:
        """Describe the model in service by its name or an alias, in OpenAI's format."""
        runtime = active_models.current()
        try:
            check_model(model, runtime, aliases, is_in_path=True)
        except ModelNotServed as error:
            return not_found_as_openai(error)
        return json_response(_openai_model(runtime))

    @router.get(METRICS, response_class=Response, responses=openapi.text_reply(CONTENT_TYPE, _EXAMPLE, words=_METRICS))
    async def metrics() -> Response:
        """Metrics in the text format of Prometheus."""
        return Response(registry.render(), media_type=CONTENT_TYPE)

    return router


def _openai_model(runtime: ModelRuntime) -> OpenaiModel:
    """Build OpenAI's description of a model."""
    identity = runtime.loaded.identity
    return OpenaiModel(identity.name, "model", 0, "rewardserve", identity.max_tokens)


def check_alive(active_models: ActiveModels) -> None:
    """Raise `RequestRefused` if the process must be restarted."""
    if not active_models.is_alive:
        raise BatcherStopped("the batching task has stopped. This is a bug in the server.")
    if active_models.is_scorer_dead:
        raise ScorerDead("the scorer has died or hangs: restart the process, and see the log for the cause")


def check_ready(active_models: ActiveModels) -> ModelRuntime:
    """Return the model in service. Raise `RequestRefused` with the reason if it cannot score at the moment."""
    runtime = active_models.current()
    if runtime.batcher.scorer_state != "healthy":
        raise scorer_hanging_error()
    if active_models.is_scorer_dead:
        raise ScorerFailing("the scorer has died; see the log")
    if n := runtime.batcher.n_failed_batches:
        raise ScorerFailing(f"{n} batches in a row have failed; see the log", retry_after_s=30.0, failed_batches=n)
    return runtime

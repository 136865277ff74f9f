"""`/livez`, `/readyz`, `/metrics` and `GET /model`: how the server is, and what it serves; the same as others ask for it."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import APIRouter
from starlette.responses import Response

from rewardserve.service.api import openapi
from rewardserve.service.api.dialects.dialect import check_model, not_found_as_openai
from rewardserve.service.api.replies import info_response, json_response
from rewardserve.service.api.route_policy import ACKNOWLEDGE, METRICS
from rewardserve.service.api.server_limits import ServerLimits
from rewardserve.service.clock import Clock
from rewardserve.service.errors import BatcherStopped, ModelNotServed, NoSuchAlert, ScorerDead, ScorerFailing
from rewardserve.service.inference.batcher import scorer_hanging_error
from rewardserve.service.models.active_models import ActiveModels
from rewardserve.service.models.runtime import ModelRuntime
from rewardserve.service.observability.metrics import CONTENT_TYPE, Metrics
from rewardserve.service.tripwires.io.canaries import failing
from rewardserve.service.tripwires.run_monitor import RunMonitor

LIVE = {500: "`batcher_stopped` or `scorer_dead`: start this process anew"}
_METRICS = {401: "`unauthorized`, where the server demands a key with the scope metrics"}


def health_routes(
    active_models: ActiveModels,
    server_limits: ServerLimits,
    registry: Metrics,
    aliases: frozenset[str],
    clock: Clock,
) -> APIRouter:
    """The routes that describe. `aliases` are names of the model beside its own. `clock` is that of the run monitor."""
    router = APIRouter(tags=["health"])

    @router.get("/livez", responses=openapi.errors(500, words=LIVE, is_open=True))
    async def livez() -> Response:
        """200 while the process can do its work; otherwise it should be started anew."""
        check_alive(active_models)
        return json_response({"status": "alive"})

    @router.get("/readyz", responses=openapi.errors(503, is_open=True))
    async def readyz() -> Response:
        """200 while `/score` is of use; 503 `loading` before, `scorer_failing`, `scorer_hanging`, `shutting_down` after."""
        served = check_ready(active_models)
        return json_response({"status": "ready", "model": served.loaded.identity.name, "model_version": served.version})

    @router.get("/health", responses=openapi.errors(503, is_open=True))
    async def health() -> Response:
        """As `/readyz`, where vLLM, SGLang and text-embeddings-inference have it."""
        return await readyz()

    @router.get("/v1/models", responses=openapi.errors(503))
    async def models() -> Response:
        """The model as OpenAI's clients list models."""
        return json_response({"object": "list", "data": [_openai_model(active_models.current())]})

    @router.get("/v1/models/{model:path}", responses=openapi.errors(404, 503))
    async def openai_model(model: str) -> Response:
        """One model as OpenAI's clients ask for it: the served one, by its name or an alias."""
        served = active_models.current()
        try:
            check_model(model, served, aliases)
        except ModelNotServed as error:
            return not_found_as_openai(error)
        return json_response(_openai_model(served))

    @router.get(METRICS, response_class=Response, responses=openapi.errors(words=_METRICS))
    async def metrics() -> Response:
        """Prometheus text."""
        return Response(registry.render(), media_type=CONTENT_TYPE)

    @router.get("/model", responses=openapi.errors(503))
    async def model() -> Response:
        """What is loaded, what it was verified against, and what one may ask of it."""
        return info_response(describe(active_models.current(), server_limits))

    @router.get("/tripwires", responses=openapi.errors(503))
    async def tripwires() -> Response:
        """What every wire measures of every run, and which have tripped."""
        served = active_models.current()
        canaries = [{"canary": canary.name, "margin": canary.margin} for canary in served.canaries.latest]
        return info_response({**describe_runs(served.watcher.monitor, clock.now()), "canaries": canaries})

    @router.post(ACKNOWLEDGE, responses=openapi.errors(404, 503, words={404: "`no_such_alert`"}))
    async def acknowledge(run: str, wire: str) -> Response:
        """Acknowledge an alert: the wire may trip again."""
        if not active_models.current().watcher.monitor.acknowledge(run, wire):
            raise NoSuchAlert(f"the wire {wire[:64]!r} of this run has not tripped, or has been acknowledged")
        return json_response({"run": run, "wire": wire, "acknowledged": True})

    return router


def _openai_model(served: ModelRuntime) -> dict[str, Any]:
    """A model as OpenAI lists one."""
    identity = served.loaded.identity
    return {
        "id": identity.name,
        "object": "model",
        "created": 0,
        "owned_by": "rewardserve",
        "max_model_len": identity.max_tokens,
    }


def check_alive(active_models: ActiveModels) -> None:
    """Raise `RequestRefused` where the process must be restarted."""
    if not active_models.is_alive:
        raise BatcherStopped("the batching task has stopped. This is a bug in the server.")
    if active_models.is_scorer_dead:
        raise ScorerDead("the scorer has died, or hangs for good; start this process anew, the log says more")


def check_ready(active_models: ActiveModels) -> ModelRuntime:
    """The model in service. Raise `RequestRefused` with the reason why it would not answer well right now."""
    served = active_models.current()
    if served.batcher.scorer_state != "healthy":
        raise scorer_hanging_error()
    if active_models.is_scorer_dead:
        raise ScorerFailing("the scorer has died; see the log")
    if n := served.batcher.n_failed_batches:
        raise ScorerFailing(f"{n} batches in a row have failed; see the log", retry_after_s=30.0, failed_batches=n)
    return served


def describe_runs(monitor: RunMonitor, now: float) -> dict[str, Any]:
    """The reply of `GET /tripwires`, but for the canaries. `now` is by the clock of the monitor; the reply has wall clock, UTC."""
    wall = datetime.now(UTC)
    wires = [
        {"wire": w.name, "severity": w.severity, "votes": w.votes, "cause": w.cause, "threshold": w.threshold,
         "unit": w.statistic.unit.text, "summary": w.summary, "confidence": w.confidence, "action": w.action}
        for w in monitor.wires
    ]  # fmt: skip
    runs = {
        name: {
            "owner": run.owner or None,
            "step": run.step,
            "ended": monitor.has_ended(name, now),
            "samples": int(run.all_sums["samples"]),
            "statistics": run.statistics,
            "tripped": [
                {
                    **active.alert._asdict(),
                    "evidence": list(active.alert.evidence),
                    "since": (wall - timedelta(seconds=now - active.since)).isoformat(timespec="seconds"),
                }
                for active in run.alerts.values()
            ],
        }
        for name, run in (monitor.archived | monitor.runs).items()
    }
    return {"wires": wires, "runs": runs}


def describe(served: ModelRuntime, server_limits: ServerLimits) -> dict[str, Any]:
    """The reply of `GET /model`."""
    loaded, identity = served.loaded, served.loaded.identity
    batching, noise = served.batcher.limits, served.numeric_noise
    return {
        **served.model_info,
        "identity": {
            "name": identity.name,
            "architecture": identity.architecture,
            "n_parameters": identity.n_parameters,
            "heads": [{"name": name, "weight": weight} for name, weight in identity.heads],
        },
        "backend": {
            "name": identity.backend,
            "engine": identity.engine,
            "engine_notes": list(identity.engine_notes),
            "score_position": identity.score_position,
            "device": identity.device,
            "dtype": identity.dtype,
            "matmul_precision": identity.matmul_precision,
        },
        "contract_report": {
            "origin": loaded.report.origin,
            "holds": loaded.report.holds,
            "breaches": [asdict(breach) for breach in loaded.report.breaches],
            "n_probes": loaded.report.n_probes,
            "max_probe_error": loaded.report.max_probe_error,
        },
        "canaries": _canaries(served),
        "numeric_noise": noise and {"max": noise.max, "p99": noise.p99, "rows": noise.n_rows},
        "contract_clauses": _clauses(served),
        "calibration_data": None if loaded.calibration is None else asdict(loaded.calibration),
        "pipeline": {
            "digest": served.pipeline.digest,
            "normalizes": served.pipeline.normalizes,
            "shape": served.pipeline.shape,
            "cap_low": served.pipeline.cap_low,
            "cap_high": served.pipeline.cap_high,
            "combine": served.pipeline.combination.method,
            "members": [asdict(member) for member in served.pipeline.combination.members],
            "stages": [
                {"name": active_models.name, "is": type(active_models).__name__, **asdict(active_models)}  # type: ignore[call-overload]
                for active_models in served.pipeline.stages
            ],
        },
        "limits": {
            "max_input_tokens": identity.max_tokens,
            **asdict(server_limits),
            "batching_max_tokens": batching.max_tokens,
            "batching_budget_tokens": batching.target,
            "batching_linger_ms": 1000 * batching.linger_s,
        },
    }


def _canaries(served: ModelRuntime) -> dict[str, Any]:
    results = served.canaries.latest
    lost = failing(results)
    return {
        "n": len(results),
        "failing": [{"canary": each.name, "margin": each.margin} for each in lost],
        "meaning": "failing: the exploit scores at least as high as the honest answer, so a policy that is trained against this "
        "model will find it",
    }


_OMITTED_CLAUSES = frozenset({"template", "probes", "heads", "origin", "format"})
"""Clauses that are too long, or beside the others in `GET /model`."""


def _clauses(served: ModelRuntime) -> dict[str, Any]:
    """Every clause of the contract but a few, so that none is forgotten."""
    return {name: value for name, value in asdict(served.loaded.contract).items() if name not in _OMITTED_CLAUSES}

"""Health, metrics and model routes: `/livez`, `/readyz`, `/metrics`, `/model`, `/tripwires`, and their names in other servers."""

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
from rewardserve.service.tripwires.attribution.observed import MAX_CHARACTERS
from rewardserve.service.tripwires.io.canaries import failing
from rewardserve.service.tripwires.io.run_texts import MAX_BYTES, N_SAMPLES
from rewardserve.service.tripwires.run_monitor import RunMonitor
from rewardserve.service.tripwires.strata import Stratum

LIVE = {500: "`batcher_stopped` or `scorer_dead`: restart the process"}
_METRICS = {401: "`unauthorized`, if the server requires a key with the scope metrics"}


def health_routes(
    active_models: ActiveModels,
    server_limits: ServerLimits,
    registry: Metrics,
    aliases: frozenset[str],
    clock: Clock,
) -> APIRouter:
    """Create the health, metrics and model routes. `aliases` are further names of the model. `clock` is that of the run monitor."""
    router = APIRouter(tags=["health"])

    @router.get("/livez", responses=openapi.errors(500, words=LIVE, is_open=True))
    async def livez() -> Response:
        """200 while the process can score; otherwise restart it."""
        check_alive(active_models)
        return json_response({"status": "alive"})

    @router.get("/readyz", responses=openapi.errors(503, is_open=True))
    async def readyz() -> Response:
        """200 while the server can score; otherwise 503 with `loading`, `scorer_failing`, `scorer_hanging` or `shutting_down`."""
        runtime = check_ready(active_models)
        return json_response(
            {"status": "ready", "model": runtime.loaded.identity.name, "model_version": runtime.version}
        )

    @router.get("/health", responses=openapi.errors(503, is_open=True))
    async def health() -> Response:
        """As `/readyz`, at the path of vLLM, SGLang and text-embeddings-inference."""
        return await readyz()

    @router.get("/v1/models", responses=openapi.errors(503))
    async def models() -> Response:
        """List the model in service, in OpenAI's format."""
        return json_response({"object": "list", "data": [_openai_model(active_models.current())]})

    @router.get("/v1/models/{model:path}", responses=openapi.errors(404, 503))
    async def openai_model(model: str) -> Response:
        """Describe the model in service by its name or an alias, in OpenAI's format."""
        runtime = active_models.current()
        try:
            check_model(model, runtime, aliases)
        except ModelNotServed as error:
            return not_found_as_openai(error)
        return json_response(_openai_model(runtime))

    @router.get(METRICS, response_class=Response, responses=openapi.errors(words=_METRICS))
    async def metrics() -> Response:
        """Metrics in the text format of Prometheus."""
        return Response(registry.render(), media_type=CONTENT_TYPE)

    @router.get("/model", responses=openapi.errors(503))
    async def model() -> Response:
        """Describe the loaded model, its contract and its verification, the reward pipeline, and the limits of requests."""
        return info_response(describe(active_models.current(), server_limits))

    @router.get("/tripwires", responses=openapi.errors(503))
    async def tripwires() -> Response:
        """List the statistics of every run, its active alerts, and the trip wires."""
        runtime = active_models.current()
        canaries = [{"canary": canary.name, "margin": canary.margin} for canary in runtime.canaries.latest]
        return info_response({**describe_runs(runtime.watcher.monitor, clock.now()), "canaries": canaries})

    @router.post(ACKNOWLEDGE, responses=openapi.errors(404, 503, words={404: "`no_such_alert`"}))
    async def acknowledge(run: str, wire: str) -> Response:
        """Acknowledge an alert: it ends, and the wire can trip again."""
        if not active_models.current().watcher.monitor.acknowledge(run, wire):
            raise NoSuchAlert(
                f"this run has no alert of the wire {wire[:64]!r}, or it is acknowledged already: see GET /tripwires"
            )
        return json_response({"run": run, "wire": wire, "acknowledged": True})

    return router


def _openai_model(runtime: ModelRuntime) -> dict[str, Any]:
    """Build OpenAI's description of a model."""
    identity = runtime.loaded.identity
    return {
        "id": identity.name,
        "object": "model",
        "created": 0,
        "owned_by": "rewardserve",
        "max_model_len": identity.max_tokens,
    }


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


def describe_runs(monitor: RunMonitor, now: float) -> dict[str, Any]:
    """Build the reply of `GET /tripwires` without canaries. `now` is by the clock of the monitor; times in the reply are UTC."""
    wall = datetime.now(UTC)
    wires = [
        {"wire": w.name, "severity": w.severity, "votes": w.votes, "cause": w.text.cause, "threshold": w.threshold,
         "unit": w.statistic.unit.text, "summary": w.text.summary,
         "confidence": w.text.confidence, "action": w.text.action}
        for w in monitor.wires
    ]  # fmt: skip
    runs = {
        name: {
            "owner": run.owner or None,
            "step": run.step,
            "ended": monitor.has_ended(name, now),
            "samples": int(run.all_sums["samples"]),
            "tasks": [_task(each) for each in run.strata.values() if each.task or len(run.strata) > 1],
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


def _task(stratum: Stratum) -> dict[str, Any]:
    return {
        "task": stratum.task or None,
        "prompts": stratum.profile or None,
        "first_step": stratum.first_step,
        "samples": int(stratum.total["samples"] + stratum.window["samples"]),
        "baseline": "complete" if stratum.has_baseline else "learning",
    }


def describe(runtime: ModelRuntime, server_limits: ServerLimits) -> dict[str, Any]:
    """Build the reply of `GET /model`."""
    loaded, identity = runtime.loaded, runtime.loaded.identity
    batching, noise = runtime.batcher.limits, runtime.numeric_noise
    return {
        **runtime.model_info,
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
            "matmul_kernels": identity.matmul_kernels,
        },
        "contract_report": {
            "origin": loaded.report.origin,
            "holds": loaded.report.holds,
            "breaches": [asdict(breach) for breach in loaded.report.breaches],
            "n_probes": loaded.report.n_probes,
            "max_probe_error": loaded.report.max_probe_error,
        },
        "canaries": _canaries(runtime),
        "attribution": _attribution(runtime),
        "numeric_noise": noise and {"max": noise.max, "p99": noise.p99, "rows": noise.n_rows},
        "contract_clauses": _clauses(runtime),
        "calibration_data": None if loaded.calibration is None else asdict(loaded.calibration),
        "pipeline": {
            "digest": runtime.pipeline.digest,
            "normalizes": runtime.pipeline.normalizes,
            "shape": runtime.pipeline.shape,
            "cap_low": runtime.pipeline.cap_low,
            "cap_high": runtime.pipeline.cap_high,
            "combine": runtime.pipeline.combination.method,
            "members": [asdict(member) for member in runtime.pipeline.combination.members],
            "stages": [
                {"name": stage.name, "is": type(stage).__name__, **asdict(stage)}  # type: ignore[call-overload]
                for stage in runtime.pipeline.stages
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


def _canaries(runtime: ModelRuntime) -> dict[str, Any]:
    results = runtime.canaries.latest
    failed = failing(results)
    return {
        "n": len(results),
        "failing": [{"canary": each.name, "margin": each.margin} for each in failed],
        "meaning": "failing: the exploit scores at least as high as the honest answer, so a policy that is trained against this "
        "model can learn the exploit",
    }


def _attribution(runtime: ModelRuntime) -> dict[str, Any]:
    return {
        "keeps_texts": runtime.watcher.attribution is not None,
        "samples": N_SAMPLES,
        "characters": MAX_CHARACTERS,
        "bytes": MAX_BYTES,
        "meaning": "keeps_texts: so many of the first and so many of the latest responses of each run are kept in memory with "
        "their prompts, each text cut to so many characters, within so many bytes over all runs",
    }


_OMITTED_CLAUSES = frozenset({"template", "probes", "heads", "origin", "format"})
"""Clauses that are too long for `GET /model`, or in its other parts."""


def _clauses(runtime: ModelRuntime) -> dict[str, Any]:
    """Return all clauses of the contract except the omitted ones, so that new clauses are included."""
    return {name: value for name, value in asdict(runtime.loaded.contract).items() if name not in _OMITTED_CLAUSES}

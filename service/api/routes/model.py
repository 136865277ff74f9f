"""`GET /model`: the loaded model, its contract and verification, the reward pipeline, and the limits of requests."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

import msgspec
from fastapi import APIRouter, Depends
from starlette.responses import Response

from rewardserve.model.calibration import Calibration
from rewardserve.model.reward import Pipeline
from rewardserve.service.api import openapi
from rewardserve.service.api.replies import info_response
from rewardserve.service.api.run_context import check_no_parameters
from rewardserve.service.api.schemas.model import (
    AuditJudgeOut,
    BackendOut,
    BreachOut,
    CalibrationOut,
    CanariesOut,
    CanaryMargin,
    ContractClauses,
    ContractReportOut,
    HeadOut,
    IdentityOut,
    KeptTexts,
    LimitsOut,
    MemberOut,
    ModelReply,
    NumericNoiseOut,
    PipelineOut,
    ScaleOut,
    StageOut,
)
from rewardserve.service.api.server_limits import ServerLimits
from rewardserve.service.models.active_models import ActiveModels
from rewardserve.service.models.runtime import ModelRuntime
from rewardserve.service.tripwires.attribution.observed import MAX_CHARACTERS
from rewardserve.service.tripwires.io.canaries import CanaryResult, failing
from rewardserve.service.tripwires.io.run_texts import MAX_BYTES, N_SAMPLES


def model_routes(active_models: ActiveModels, server_limits: ServerLimits, capture: str) -> APIRouter:
    """Create the route. `capture`: which samples are captured, in the words of the setting."""
    router = APIRouter(tags=["health"], dependencies=[Depends(check_no_parameters)])

    @router.get("/model", responses=openapi.replies(ModelReply, 422, 503, words=openapi.NO_PARAMETERS))
    async def model() -> Response:
        """Describe the loaded model, its contract and its verification, the reward pipeline, and the limits of requests."""
        return info_response(describe_model(active_models.current(), server_limits, capture))

    return router


def describe_model(runtime: ModelRuntime, server_limits: ServerLimits, capture: str) -> ModelReply:
    """Build the reply of `GET /model`."""
    loaded, noise = runtime.loaded, runtime.numeric_noise
    report = loaded.report
    return ModelReply(
        **{name: value for name, value in runtime.model_info.items() if name != "pipeline"},
        identity=_identity(runtime),
        backend=_backend(runtime),
        contract_report=ContractReportOut(
            report.origin,
            report.holds,
            [BreachOut(each.clause, each.message, each.remedy) for each in report.breaches],
            report.n_probes,
            report.max_probe_error,
        ),
        canaries=_canaries(runtime),
        audit_judge=_audit_judge(runtime),
        attribution=KeptTexts(runtime.watcher.attribution is not None, N_SAMPLES, MAX_CHARACTERS, MAX_BYTES),
        capture=capture,
        numeric_noise=None if noise is None else NumericNoiseOut(noise.max, noise.p99, noise.n_rows),
        contract_clauses=contract_clauses(runtime),
        calibration_data=None if loaded.calibration is None else _calibration(loaded.calibration),
        pipeline=_pipeline(runtime.pipeline),
        limits=_limits(runtime, server_limits),
    )


def _audit_judge(runtime: ModelRuntime) -> AuditJudgeOut | None:
    judge = runtime.judge
    return None if judge is None else AuditJudgeOut(**judge.description, share=judge.share)


def contract_clauses(runtime: ModelRuntime) -> ContractClauses:
    """Build the clauses of the contract but for the long ones."""
    contract = runtime.loaded.contract
    tolerances = dict(contract.dtype_tolerance)
    clauses: dict[str, Any] = {name: getattr(contract, name) for name in ContractClauses.__struct_fields__}
    return ContractClauses(**{**clauses, "dtype_tolerance": tolerances})


def _identity(runtime: ModelRuntime) -> IdentityOut:
    identity = runtime.loaded.identity
    return IdentityOut(identity.name, identity.architecture, identity.n_parameters, _heads(identity.heads))


def _heads(heads: Iterable[tuple[str, float]]) -> list[HeadOut]:
    return [HeadOut(name, weight) for name, weight in heads]


def _backend(runtime: ModelRuntime) -> BackendOut:
    identity = runtime.loaded.identity
    return BackendOut(
        identity.backend, identity.engine, identity.engine_notes, identity.score_position, identity.device, identity.dtype,
        identity.matmul_precision, identity.matmul_kernels,
    )  # fmt: skip


def _canaries(runtime: ModelRuntime) -> CanariesOut:
    results = runtime.canaries.latest
    by_margin = sorted(results, key=lambda each: each.margin)
    judged = {} if runtime.judge is None else runtime.judge.canary_margins
    return CanariesOut(len(results), _margins(failing(results), judged), _margins(by_margin, judged))


def _margins(results: Iterable[CanaryResult], judged: Mapping[str, float]) -> list[CanaryMargin]:
    return [CanaryMargin(each.name, each.margin, judged.get(each.name)) for each in results]


def _calibration(calibration: Calibration) -> CalibrationOut:
    return msgspec.convert(asdict(calibration), CalibrationOut)


def _pipeline(pipeline: Pipeline) -> PipelineOut:
    combination = pipeline.combination
    members = [
        MemberOut(each.name, _heads(each.heads), ScaleOut(**asdict(each.scale)), each.weight)
        for each in combination.members
    ]
    stages = [
        StageOut(stage.name, type(stage).__name__, **asdict(stage))  # type: ignore[call-overload]
        for stage in pipeline.stages
    ]
    return PipelineOut(
        pipeline.digest, pipeline.normalizes, pipeline.shape, pipeline.cap_low, pipeline.cap_high, combination.method,
        members, stages,
    )  # fmt: skip


def _limits(runtime: ModelRuntime, server_limits: ServerLimits) -> LimitsOut:
    batching = runtime.batcher.limits
    return LimitsOut(
        max_input_tokens=runtime.loaded.identity.max_tokens,
        **asdict(server_limits),
        batching_max_tokens=batching.max_tokens,
        batching_budget_tokens=batching.target,
        batching_linger_ms=1000 * batching.linger_s,
    )

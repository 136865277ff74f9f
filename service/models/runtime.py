"""The runtime of one loaded model: encode pool, batcher, run watcher, canaries and scoring, reporting to metrics and log.

Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from urllib.parse import quote

from rewardserve.model.backends import LoadedModel
from rewardserve.model.calibration import Calibration
from rewardserve.model.reward import Pipeline
from rewardserve.model.scorer import ScorerError
from rewardserve.service.clock import utc_now
from rewardserve.service.inference.background_scorer import BackgroundScorer
from rewardserve.service.inference.batcher import Batcher
from rewardserve.service.inference.encode_pool import EncodePool
from rewardserve.service.inference.numeric_noise import NumericNoise
from rewardserve.service.inference.outcomes import BatchResult
from rewardserve.service.inference.shadow import Shadow
from rewardserve.service.inference.watchdog import ScorerState, Watchdog
from rewardserve.service.models.audit_judge import start_judge
from rewardserve.service.models.batcher_factory import create_batcher
from rewardserve.service.models.deployment import ModelState, ModelStatus, Source
from rewardserve.service.models.loading import PreparedModel
from rewardserve.service.models.shared_resources import SharedResources
from rewardserve.service.observability import logs
from rewardserve.service.observability.metrics import Metrics
from rewardserve.service.review.capture import SampleCapture
from rewardserve.service.scoring import Scoring
from rewardserve.service.token_values import TokenScorer
from rewardserve.service.tripwires.baseline import Baseline, BaselineSource, baseline_stat
from rewardserve.service.tripwires.io.audit import AuditJudge
from rewardserve.service.tripwires.io.canaries import CanarySet
from rewardserve.service.tripwires.io.edit_scorer import EditScorer
from rewardserve.service.tripwires.io.run_watcher import RunWatcher


@dataclass(frozen=True, slots=True)
class ResultFields:
    """Fields of a result beside its reward: the values of these heads, and the change by each stage of the pipeline.
    `all_stages` are those of a sample with continuations.

    No other output of the scorer is sent to clients.
    """

    heads: frozenset[str]
    stages: tuple[str, ...]
    all_stages: tuple[str, ...] = ()

    @classmethod
    def of(cls, loaded: LoadedModel, pipeline: Pipeline) -> ResultFields:
        """The fields that add to reward, raw and normalised score: heads if there are several, stages if the pipeline itemises."""
        names = frozenset(name for name, _ in loaded.identity.heads)
        return cls(
            names if len(names) > 1 else frozenset(),
            pipeline.stage_names if pipeline.itemises else (),
            pipeline.stage_names,
        )


@dataclass(eq=False)  # no slots: they would leave no place for cached properties
class ModelRuntime:
    """One loaded model, ready for requests. `version` counts the models that this process has loaded.

    `numeric_noise` is the largest change of a raw score by the rest of its batch; None: not measured. `shadow` compares the
    model with the one in service, where it was loaded for that. `edit_scorer` scores edited responses for attribution,
    `token_scorer` every token of one sample. `judge`
    audits its samples; `own_judge` is the same where it belongs to this model.
    """

    version: int
    source: Source
    loaded: LoadedModel
    pipeline: Pipeline
    numeric_noise: NumericNoise | None
    encode_pool: EncodePool
    batcher: Batcher
    watcher: RunWatcher
    scoring: Scoring
    canaries: CanarySet
    canary_task: asyncio.Task[None]
    edit_scorer: EditScorer
    token_scorer: TokenScorer
    shadow: Shadow | None = None
    judge: AuditJudge | None = None
    own_judge: AuditJudge | None = None
    loaded_at: str = field(default_factory=utc_now)

    @property
    def labels(self) -> dict[str, str]:
        """Identity of the model, for metrics."""
        identity = self.loaded.identity
        return {
            "name": identity.name,
            "architecture": identity.architecture,
            "backend": identity.backend,
            "engine": identity.engine,
            "dtype": identity.dtype,
            "device": identity.device,
            "contract": self.loaded.contract.digest,
            "calibration": self.loaded.calibration_digest or "",
            "pipeline": self.pipeline.digest,
            "version": str(self.version),
        }

    @cached_property
    def model_info(self) -> dict[str, Any]:
        """Identity of the model, in every reply. Cached, because digests cost as much as a request does and do not change."""
        return {
            "model": self.loaded.identity.name,
            "model_version": self.version,
            "contract": self.loaded.contract.digest,
            "calibration": self.loaded.calibration_digest,
            "pipeline": self.pipeline.digest,
        }

    @cached_property
    def snapshot(self) -> str:
        """Digest of all that a reward depends on besides its sample: contract with weights, calibration and pipeline."""
        info = self.model_info
        parts = (info["contract"], info["calibration"] or "", info["pipeline"])
        return f"sha256:{hashlib.sha256(chr(10).join(parts).encode()).hexdigest()}"

    @cached_property
    def headers(self) -> dict[str, str]:
        """The name (percent-encoded: any name of a folder can be that of a model) and the version, as headers of a reply."""
        name = quote(self.loaded.identity.name, safe=" /:+@,;=()[]!")
        return {"x-model-name": name, "x-model-version": str(self.version)}

    @property
    def uncovered_canaries(self) -> list[str] | None:
        """Failing canaries whose exploit the audit judge prefers too, or cannot score; None without a judge that scored any."""
        if self.judge is None or not self.judge.canary_margins:
            return None
        margins = self.judge.canary_margins
        return [each.name for each in self.canaries.failing if not margins.get(each.name, 0.0) > 0.0]

    def has(self, digests: Sequence[str]) -> bool:
        """Whether each of these is the digest of its contract, calibration or pipeline."""
        model_info = self.model_info
        return all(
            digest in (model_info["contract"], model_info["calibration"], model_info["pipeline"]) for digest in digests
        )

    @cached_property
    def result_fields(self) -> ResultFields:
        """The fields of its results."""
        return ResultFields.of(self.loaded, self.pipeline)

    def status(self, state: ModelState, pinned_runs: tuple[str, ...]) -> ModelStatus:
        """Status of the model, for operators."""
        return ModelStatus(
            version=self.version,
            state=state,
            source=str(self.source),
            name=self.loaded.identity.name,
            contract=self.loaded.contract.digest,
            calibration=self.loaded.calibration_digest,
            pipeline=self.pipeline.digest,
            snapshot=self.snapshot,
            loaded_at=self.loaded_at,
            requests_in_flight=self.scoring.n_in_flight,
            pinned_runs=pinned_runs,
            shadow=self.shadow.comparison if self.shadow is not None and state == "shadow" else None,
        )

    async def stop(self) -> None:
        """Drain the accepted requests, then free the model."""
        if self.shadow is not None:
            await self.shadow.stop()
        self.canary_task.cancel()
        await self.edit_scorer.stop()
        await self.batcher.stop()
        if self.own_judge is not None:
            await self.own_judge.stop()
        self.encode_pool.close()
        # Waits for the scorer's processes, where it has some; replies are written meanwhile.
        await asyncio.to_thread(self.loaded.scorer.close)


def start_runtime(resources: SharedResources, model: PreparedModel, version: int, source: Source) -> ModelRuntime:
    """Start the runtime of a loaded model. The batcher is running when this returns. Needs a running event loop."""
    settings, metrics, clock = resources.settings, resources.metrics, resources.clock
    loaded, pipeline = model.loaded, model.pipeline
    events = _InferenceReport(metrics, logs.logger("batcher"))
    encode_pool = EncodePool(loaded.encode, settings.encoder_threads, events)
    watchdog = Watchdog(resources.scorer_timeout_s) if resources.scorer_timeout_s else None
    batcher = create_batcher(settings, loaded, clock, events, version, watchdog)
    edit_scorer = EditScorer(BackgroundScorer(encode_pool, batcher, pipeline), batcher, clock)
    own_judge = _start_own_judge(resources, model)
    judge = own_judge or resources.judge
    capture = _build_capture(resources, loaded, pipeline, version)
    watcher = _build_watcher(resources, model, version, edit_scorer, judge, capture)
    metrics.model_loaded(version, loaded.calibration, pipeline)
    batcher.start()
    canaries = model.canaries or CanarySet([], loaded.encode, loaded.identity, 1.0)
    canary_task = asyncio.create_task(
        canaries.run_periodically(batcher, watcher, settings.tripwires.canaries_every_s), name="canaries"
    )
    canary_task.add_done_callback(logs.log_task_exception)
    scoring = Scoring(
        version=version,
        admission=resources.admission,
        encode_pool=encode_pool,
        batcher=batcher,
        pipeline=pipeline,
        watcher=watcher,
        metrics=metrics,
        clock=clock,
        max_tokens=loaded.identity.max_tokens,
        capture=capture,
        policy=resources.policy,
    )
    runtime = ModelRuntime(
        version=version,
        source=source,
        loaded=loaded,
        pipeline=pipeline,
        numeric_noise=model.noise,
        encode_pool=encode_pool,
        batcher=batcher,
        watcher=watcher,
        scoring=scoring,
        token_scorer=TokenScorer(
            version,
            resources.admission,
            encode_pool,
            loaded.encode,
            batcher,
            shares_prefixes=loaded.scorer.shares_prefixes,
        ),
        canaries=canaries,
        canary_task=canary_task,
        edit_scorer=edit_scorer,
        judge=judge,
        own_judge=own_judge,
    )
    _warn_of_failing_canaries(runtime)
    return runtime


def _warn_of_failing_canaries(runtime: ModelRuntime) -> None:
    """Log the canaries that the model fails, and of these the ones that its audit judge does not cover."""
    canaries = runtime.canaries
    if lost := canaries.failing:
        logs.logger("canaries").warning(
            "canaries_failing", model=runtime.loaded.identity.name, n=len(canaries.first),
            failing={each.name: round(each.margin, 4) for each in lost},
            judge_failing=runtime.uncovered_canaries,
            meaning="this model scores these exploits at least as high as the honest answer; a policy will find them",
        )  # fmt: skip


def _start_own_judge(resources: SharedResources, model: PreparedModel) -> AuditJudge | None:
    if model.audit is None:
        return None
    texts = resources.attribution.texts if resources.attribution is not None else None
    return start_judge(
        resources.settings, model.audit, resources.clock, resources.monitor, resources.tripwire_events, texts
    )


def _build_watcher(
    resources: SharedResources,
    model: PreparedModel,
    version: int,
    edit_scorer: EditScorer,
    judge: AuditJudge | None,
    capture: SampleCapture | None,
) -> RunWatcher:
    loaded, pipeline, settings = model.loaded, model.pipeline, resources.settings
    known = _baseline(loaded.calibration, pipeline) if settings.tripwires.baseline == "calibration" else Baseline()
    components, name = pipeline.combination.component_names, loaded.identity.name
    return RunWatcher(
        resources.monitor,
        BaselineSource(known, components, resources.learned, name, _digest(resources, loaded, pipeline)),
        resources.lexicon,
        resources.clock,
        resources.alert_sender,
        encoder=loaded.encode,
        pipeline=pipeline,
        model={"model": name, "model_version": version, "pipeline": pipeline.digest},
        cpu_budget=resources.cpu_budget,
        judge=judge,
        honeypots=resources.honeypots,
        evidence_store=resources.evidence_store,
        attribution=resources.attribution,
        edit_scorer=edit_scorer,
        archive=capture,
    )


def _build_capture(
    resources: SharedResources, loaded: LoadedModel, pipeline: Pipeline, version: int
) -> SampleCapture | None:
    if resources.capture is None:
        return None
    return SampleCapture(
        resources.capture.policy,
        resources.capture.writer,
        resources.monitor,
        resources.clock,
        encoder=loaded.encode,
        stage_names=pipeline.stage_names,
        head_names=[name for name, _ in loaded.identity.heads],
        model=loaded.identity.name,
        model_version=version,
    )


def _digest(resources: SharedResources, loaded: LoadedModel, pipeline: Pipeline) -> str:
    """The digest of all that the numbers of a sample depend on: scores, rewards, phrases, and where baselines come from."""
    parts = (
        loaded.contract.digest,
        loaded.calibration_digest,
        pipeline.digest,
        resources.lexicon.digest,
        resources.settings.tripwires.baseline,
    )
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _baseline(calibration: Calibration | None, pipeline: Pipeline) -> Baseline:
    """The baseline from the calibration; without scores where the reward combines heads in another way than the calibration."""
    if calibration is None:
        return Baseline()
    known = {trait.name: baseline_stat(trait.name, trait.mean, trait.std) for trait in calibration.traits}
    if pipeline.combination.method != "sum" or not calibration.quantiles:
        return Baseline(known)
    scale = pipeline.combination.members[0].scale
    known["score"] = baseline_stat("score", (calibration.mean - scale.mean) / scale.std, calibration.std / scale.std)
    return Baseline(known, saturation=(calibration.quantiles[-1][1] - scale.mean) / scale.std)


@dataclass(frozen=True, slots=True)
class _InferenceReport:
    """Receiver of events that counts and logs the batches of one model."""

    metrics: Metrics
    log: logs.Logger

    def on_batch(self, result: BatchResult) -> None:
        if result.outcome == "ok":
            self.metrics.observe_batch(
                result.n_rows,
                result.n_row_tokens,
                result.n_tokens,
                result.n_computed,
                result.n_padding,
                result.forward_s,
            )
            self.metrics.observe_queue(result.queue_s)
            return
        self.metrics.observe_failure(result.outcome)
        sizes = {"rows": result.n_rows, "tokens": result.n_tokens}
        if result.outcome == "out_of_memory":
            self.log.warning("batch_out_of_memory", **sizes, budget=result.budget)
        else:
            # Only the message of a backend is logged: that of any other exception may quote anything.
            backend_error = str(result.error)[:500] if isinstance(result.error, ScorerError) else ""
            self.log.error(f"batch_{result.outcome}", **sizes, backend_error=backend_error, exc_info=result.error)

    def on_scorer_state(self, state: ScorerState) -> None:
        level = self.log.info if state == "healthy" else self.log.error
        level("scorer_state", state=state)

    def on_encode_bug(self, error: BaseException) -> None:
        self.log.error("encoder_bug", exc_info=error)

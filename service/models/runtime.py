"""The rooms that exist once a model is loaded: builds them around it, and tells metrics and log what they say.

Knows every room but those that speak HTTP, and no HTTP.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from rewardserve.model.backends import LoadedModel, LoadError, load
from rewardserve.model.backends.ensemble import ensemble
from rewardserve.model.calibration import Calibration
from rewardserve.model.reward import Pipeline, RewardSettings, build_pipeline
from rewardserve.model.scorer import ScorerError
from rewardserve.model.traits import Lexicon
from rewardserve.service.admission import Admission
from rewardserve.service.clock import Clock
from rewardserve.service.inference.batch_size import BUDGETS, BatchSizeController
from rewardserve.service.inference.batcher import Batcher
from rewardserve.service.inference.encode_pool import EncodePool
from rewardserve.service.inference.numeric_noise import NumericNoise, numeric_noise, synthetic_rows
from rewardserve.service.inference.outcomes import BatchResult
from rewardserve.service.inference.planner import BatchLimits
from rewardserve.service.inference.score_cache import ScoreCache
from rewardserve.service.inference.watchdog import ScorerState, Watchdog
from rewardserve.service.observability import logs
from rewardserve.service.observability.metrics import Metrics
from rewardserve.service.scoring import Rooms, Scoring
from rewardserve.service.settings import ModelSettings
from rewardserve.service.tripwires.alert import CANARY, Alert
from rewardserve.service.tripwires.baseline import Baseline, BaselineSource, baseline_stat
from rewardserve.service.tripwires.honeypots import Honeypots
from rewardserve.service.tripwires.incidents import IncidentTracker
from rewardserve.service.tripwires.io.audit import AuditJudge
from rewardserve.service.tripwires.io.baseline_store import BaselineStore
from rewardserve.service.tripwires.io.canaries import SHIPPED, CanariesError, CanarySet
from rewardserve.service.tripwires.io.canaries import read as canary_pairs
from rewardserve.service.tripwires.io.evidence import EvidenceStore
from rewardserve.service.tripwires.io.run_watcher import CpuBudget, RunWatcher
from rewardserve.service.tripwires.io.webhook import Webhook
from rewardserve.service.tripwires.run_monitor import CANARIES, CANARY_THRESHOLD, MonitorLimits, RunMonitor
from rewardserve.service.tripwires.wires import ALERT_TEXTS

_CANARY_STDS, _CANARY_NOISES = 0.01, 4.0

_NO_EPOCH = 0
"""Of the audit judge, which nobody is served by."""

FIRST_BUDGET = {"cpu": 1024, "cuda": 8192}
"""Tokens of a batch, by device, until the forwards themselves have said what they take; of a scorer that streams, for good."""
LARGEST_BATCH_TOKENS = BUDGETS[-1]


@dataclass(frozen=True, slots=True)
class Commons:
    """What all models of a process have in common, however many are loaded."""

    settings: ModelSettings
    admission: Admission
    metrics: Metrics
    clock: Clock
    monitor: RunMonitor
    cpu_budget: CpuBudget
    lexicon: Lexicon
    honeypots: Honeypots | None = None
    evidence_store: EvidenceStore | None = None
    webhook: Webhook | None = None
    judge: AuditJudge | None = None
    scorer_timeout_s: float = 0.0
    incidents: IncidentTracker = field(default_factory=IncidentTracker)

    async def close(self) -> None:
        """When no model scores any more."""
        if self.judge is not None:
            await self.judge.stop()
        if self.evidence_store is not None:
            self.evidence_store.close()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A loaded model that has been measured, but has no rooms around it yet."""

    loaded: LoadedModel
    pipeline: Pipeline
    noise: NumericNoise | None = None
    canaries: CanarySet | None = None


@dataclass(frozen=True, slots=True)
class Engine:
    """The rooms around one loaded model."""

    version: int
    loaded: LoadedModel
    pipeline: Pipeline
    noise: NumericNoise | None
    encoder: EncodePool
    batcher: Batcher
    watcher: RunWatcher
    scoring: Scoring
    canaries: CanarySet
    canary_task: asyncio.Task[None]
    baseline_store: BaselineStore | None = None

    @property
    def labels(self) -> dict[str, str]:
        """Which model this is, for metrics."""
        identity = self.loaded.identity
        return {
            "name": identity.name,
            "architecture": identity.architecture,
            "backend": identity.backend,
            "engine": identity.engine,
            "dtype": identity.dtype,
            "device": identity.device,
            "contract": self.loaded.contract.digest,
            "calibration": self.loaded.calibration.digest if self.loaded.calibration else "",
            "pipeline": self.pipeline.digest,
            "version": str(self.version),
        }

    async def stop(self) -> None:
        """Finish what was accepted, then free the model."""
        self.canary_task.cancel()
        await self.batcher.stop()
        if self.baseline_store is not None:
            self.baseline_store.close()
        self.encoder.close()
        # Waits for processes, where the scorer has some: answers are being written meanwhile.
        await asyncio.to_thread(self.loaded.scorer.close)


def prepare(settings: ModelSettings) -> Prepared:
    """Load a model and measure it. Raise `LoadError`, `PipelineError` or `CalibrationError`. Takes its time."""
    loaded, pipeline = load_model(settings)
    try:
        noise = measure_noise(settings, loaded)
        return Prepared(loaded, pipeline, noise, load_canaries(settings, loaded, noise))
    except BaseException:
        loaded.scorer.close()
        raise


def measure_noise(settings: ModelSettings, loaded: LoadedModel) -> NumericNoise | None:
    """See `numeric_noise`; the contract's probes are the rows, where it has some. Takes a few forwards, which warm the
    model up; a backend without weights is not asked.

    Raise `LoadError` where there is noise although none was promised.
    """
    rows = [probe.ids for probe in loaded.contract.probes]
    if not rows and loaded.identity.n_parameters:
        rows = synthetic_rows(loaded.identity.max_tokens)
    noise = numeric_noise(loaded.scorer, loaded.identity.raw, rows)
    if settings.deterministic and noise is not None and noise.max > 0.0:
        raise LoadError(
            f"REWARD_DETERMINISTIC=1, but a score depends on what else is in its batch, by up to {noise.max:.1e} "
            f"with the engine {loaded.identity.engine} in {loaded.identity.dtype} on {loaded.identity.device}. "
            f"Set another REWARD_ENGINE, or REWARD_DETERMINISTIC=0."
        )
    return noise


def load_model(settings: ModelSettings) -> tuple[LoadedModel, Pipeline]:
    """The model and the pipeline for its scores. Raise `LoadError` or `PipelineError`. Takes its time."""
    named = settings.named_models()
    if named:
        loaded = ensemble([(name, load(settings.backend, settings.model_spec(model))) for name, model in named.items()])
    else:
        loaded = load(settings.backend, settings.model_spec())
    return loaded, build_pipeline(loaded.ensemble_members, settings.reward_settings())


def load_audit(settings: ModelSettings) -> LoadedModel | None:
    """The audit model, if there is to be one. Raise `LoadError`."""
    if not settings.audit_model:
        return None
    audit = load(settings.backend, settings.model_spec(settings.audit_model))
    if audit.calibration is None:
        raise LoadError(
            f"REWARD_AUDIT_MODEL={settings.audit_model} has no fitted statistics, so its scores cannot be compared with "
            "anybody's. Fit them with `rewardserve calibrate`."
        )
    return audit


def load_canaries(settings: ModelSettings, loaded: LoadedModel, noise: NumericNoise | None) -> CanarySet:
    """Canaries that have sung once. Raise `LoadError`. Takes a forward; a backend without weights has nothing to change.

    A score may change by a hundredth of a standard deviation, or by a few times the noise, which is larger in half precision.
    """
    try:
        known = canary_pairs(settings.tripwires.canaries_file or SHIPPED)
    except CanariesError as error:
        raise LoadError(f"REWARD_TRIPWIRES__CANARIES_FILE: {error}") from None
    std = loaded.calibration.std if loaded.calibration else 1.0
    allowed = max(_CANARY_STDS * std, _CANARY_NOISES * noise.max if noise else 0.0)
    canaries = CanarySet(known if loaded.identity.n_parameters else [], loaded.encode, loaded.identity, allowed)
    canaries.score_first(lambda batch: [loaded.identity.raw(heads) for heads in loaded.scorer.score(batch).rows])
    return canaries


def build_commons(
    settings: ModelSettings,
    admission: Admission,
    metrics: Metrics,
    clock: Clock,
    webhook: Webhook | None = None,
    audit: LoadedModel | None = None,
    scorer_timeout_s: float = 0.0,
) -> Commons:
    """What every engine of this process shares. Once a process. `scorer_timeout_s` 0: a forward may take for ever.

    Raise `LexiconError`.
    """
    config = settings.wire_config()
    limits = MonitorLimits(
        window=settings.tripwires.window,
        votes_for_a_page=config.votes_for_a_page,
        ended_s=settings.tripwires.run_ends_s,
        blocks=frozenset(config.block),
    )
    monitor = RunMonitor(BaselineSource(), limits, config.wires)
    metrics.watch_runs(monitor, clock.now)
    return Commons(
        settings,
        admission,
        metrics,
        clock,
        monitor,
        CpuBudget(settings.tripwires.cpu_share, clock.now()),
        Lexicon.read([Path(name) for name in config.lexicons]),
        settings.read_honeypots(),
        _build_evidence_store(settings),
        webhook,
        _build_judge(settings, audit, clock, metrics) if audit is not None else None,
        scorer_timeout_s,
    )


def build_engine(commons: Commons, prepared: Prepared, version: int) -> Engine:
    """The rooms around a loaded model. The batcher is running when this returns."""
    settings, metrics, clock = commons.settings, commons.metrics, commons.clock
    loaded, pipeline, log = prepared.loaded, prepared.pipeline, logs.logger("batcher")
    encoder = EncodePool(
        loaded.encode, settings.encoder_threads, lambda error: log.error("encoder_bug", exc_info=error)
    )
    watchdog = Watchdog(commons.scorer_timeout_s) if commons.scorer_timeout_s else None
    tell_of_batches, tell_of_scorer = _tell_of_batches(metrics, log), _tell_of_scorer(log)
    batcher = _build_batcher(settings, loaded, clock, tell_of_batches, version, watchdog, tell_of_scorer)
    baseline_store = _build_baseline_store(settings, loaded, pipeline)
    watcher = _build_watcher(commons, prepared, baseline_store, version)
    metrics.model_loaded(version, loaded.calibration, pipeline)
    batcher.start()
    canaries = prepared.canaries or CanarySet([], loaded.encode, loaded.identity, 1.0)

    if lost := canaries.failing:
        logs.logger("canaries").warning(
            "canaries_failing", model=loaded.identity.name, n=len(canaries.first),
            failing={each.name: round(each.margin, 4) for each in lost},
            meaning="this model scores these exploits at least as high as the honest answer; a policy will find them",
        )  # fmt: skip

    def changed(names: list[str], by: float) -> None:
        watcher.report(CANARIES, Alert(CANARY, "page", by, CANARY_THRESHOLD, None, tuple(names)))

    canary_task = asyncio.create_task(
        canaries.run_periodically(batcher, settings.tripwires.canaries_every_s, changed), name="canaries"
    )
    canary_task.add_done_callback(logs.tell_of_death)
    rooms = Rooms(version, commons.admission, encoder, batcher, pipeline, watcher, metrics, clock)
    return Engine(
        version,
        loaded,
        pipeline,
        prepared.noise,
        encoder,
        batcher,
        watcher,
        Scoring(rooms, loaded.identity.max_tokens),
        canaries,
        canary_task,
        baseline_store,
    )


def _build_watcher(
    commons: Commons, prepared: Prepared, baseline_store: BaselineStore | None, version: int
) -> RunWatcher:
    log, settings = logs.logger("tripwires"), commons.settings
    loaded, pipeline, webhook = prepared.loaded, prepared.pipeline, commons.webhook

    def on_alert(run: str, alert: Alert) -> None:
        state, text = commons.monitor.runs.get(run), ALERT_TEXTS[alert.wire]
        notification = commons.incidents.notification_for(run, alert, state.alerts if state is not None else ())
        if webhook is not None and notification is not None:
            webhook.enqueue({"run": run, **alert._asdict(), "summary": text.summary, "confidence": text.confidence,
                             "action": text.action,
                             "statistic_text": text.unit.measured(alert.statistic),
                             "threshold_text": text.unit.measured(alert.threshold), **notification._asdict(),
                             "model": loaded.identity.name, "model_version": version,
                             "pipeline": pipeline.digest})  # fmt: skip
        level = log.error if alert.severity == "page" else log.warning if alert.severity == "warn" else log.info
        level("tripwire", run=run, wire=alert.wire, severity=alert.severity, statistic=round(alert.statistic, 4),
              threshold=alert.threshold, step=alert.step, evidence=list(alert.evidence))  # fmt: skip

    known = _baseline(loaded.calibration, pipeline) if settings.tripwires.baseline == "calibration" else Baseline()
    components = pipeline.combination.component_names
    baseline_source = BaselineSource(known, tuple(components), model=loaded.identity.name)
    if baseline_store is not None:
        baseline_source = replace(baseline_source, known=baseline_store.baselines, on_learned=baseline_store.save)
    return RunWatcher(
        commons.monitor,
        baseline_source,
        commons.lexicon,
        commons.clock,
        on_alert,
        cpu_budget=commons.cpu_budget,
        judge=commons.judge,
        honeypots=commons.honeypots,
        evidence_store=commons.evidence_store,
        components_of=pipeline.combination.components if components else lambda _: (),
        texts_of=loaded.encode.texts,
    )


def _build_baseline_store(settings: ModelSettings, loaded: LoadedModel, pipeline: Pipeline) -> BaselineStore | None:
    folder, log = settings.tripwires.state_dir, logs.logger("baselines")
    if folder is None:
        return None
    served = hashlib.sha256(f"{loaded.contract.digest} {pipeline.digest}".encode()).hexdigest()
    return BaselineStore(folder, served, lambda why: log.error("baseline_save_failed", reason=why))


def _build_evidence_store(settings: ModelSettings) -> EvidenceStore | None:
    folder, log = settings.tripwires.evidence_dir, logs.logger("evidence")
    return EvidenceStore(folder, lambda why: log.error("evidence_not_written", reason=why)) if folder else None


def _build_judge(settings: ModelSettings, audit: LoadedModel, clock: Clock, metrics: Metrics) -> AuditJudge:
    log = logs.logger("audit")
    encoder = EncodePool(audit.encode, 1, lambda error: log.error("encoder_bug", exc_info=error))

    def tell(done: BatchResult) -> None:
        if done.outcome != "ok":
            log.error(f"batch_{done.outcome}", rows=done.n_rows, tokens=done.n_tokens)

    batcher = _build_batcher(settings, audit, clock, tell, _NO_EPOCH)
    batcher.start()
    pipeline = build_pipeline(audit.ensemble_members, RewardSettings(shape="none"))
    share = settings.tripwires.audit_share
    return AuditJudge(
        encoder,
        batcher,
        pipeline,
        share=share,
        on_skipped=metrics.observe_audit_skipped,
        close=audit.scorer.close,
    )


def _baseline(calibration: Calibration | None, pipeline: Pipeline) -> Baseline:
    """What the calibration says is usual; of a combination of its own it says nothing of the scores."""
    if calibration is None:
        return Baseline()
    known = {trait.name: baseline_stat(trait.name, trait.mean, trait.std) for trait in calibration.traits}
    if pipeline.combination.method != "sum" or not calibration.quantiles:
        return Baseline(known)
    scale = pipeline.combination.members[0].scale
    known["score"] = baseline_stat("score", (calibration.mean - scale.mean) / scale.std, calibration.std / scale.std)
    return Baseline(known, saturation=(calibration.quantiles[-1][1] - scale.mean) / scale.std)


def _build_batcher(
    settings: ModelSettings,
    loaded: LoadedModel,
    clock: Clock,
    tell: Callable[[BatchResult], None],
    version: int,
    watchdog: Watchdog | None = None,
    tell_of_scorer: Callable[[ScorerState], None] = lambda state: None,
) -> Batcher:
    fixed, first = settings.batching.max_tokens, _first_budget(loaded.identity.device)
    keeps_budget = bool(fixed) or loaded.scorer.streams
    return Batcher(
        loaded.scorer,
        BatchLimits(fixed or LARGEST_BATCH_TOKENS, settings.batching.linger_ms / 1000, target_tokens=fixed or first),
        clock,
        tell,
        batch_size=None if keeps_budget else BatchSizeController.starting_at(first),
        cache=ScoreCache(settings.cache.scores, version),
        watchdog=watchdog,
        on_state=tell_of_scorer,
    )


def _first_budget(device: str) -> int:
    return FIRST_BUDGET.get(device.partition(":")[0], FIRST_BUDGET["cpu"])


def _tell_of_scorer(log: logs.Logger) -> Callable[[ScorerState], None]:
    def tell(state: ScorerState) -> None:
        level = log.info if state == "healthy" else log.error
        level("scorer_state", state=state)

    return tell


def _tell_of_batches(metrics: Metrics, log: logs.Logger) -> Callable[[BatchResult], None]:
    def tell(done: BatchResult) -> None:
        if done.outcome == "ok":
            metrics.observe_batch(
                done.n_rows, done.n_row_tokens, done.n_tokens, done.n_computed, done.n_padding, done.forward_s
            )
            metrics.observe_queue(done.queue_s)
            return
        metrics.observe_failure(done.outcome)
        if done.outcome == "out_of_memory":
            log.warning("batch_out_of_memory", rows=done.n_rows, tokens=done.n_tokens, budget=done.budget)
        else:
            # Only a backend's own words are written down: those of any other exception may quote anything.
            said = str(done.error)[:500] if isinstance(done.error, ScorerError) else ""
            log.error(f"batch_{done.outcome}", rows=done.n_rows, tokens=done.n_tokens, said=said, exc_info=done.error)

    return tell

"""The rooms that exist once a model is loaded: builds them around it, and tells metrics and log what they say.

Knows every room but those that speak HTTP, and no HTTP.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from rewardserve.model.backends import LoadedModel, LoadError, load
from rewardserve.model.backends.ensemble import ensemble
from rewardserve.model.calibration import Calibration
from rewardserve.model.reward import Pipeline, RewardSettings, build_pipeline
from rewardserve.model.scorer import ScorerError
from rewardserve.model.traits import Lexicon
from rewardserve.service.admission import Admission
from rewardserve.service.audit import AuditJudge
from rewardserve.service.canaries import SHIPPED, Canaries, CanariesError
from rewardserve.service.canaries import read as canary_pairs
from rewardserve.service.clock import Clock
from rewardserve.service.evidence import EvidenceRoom
from rewardserve.service.inference.batch_size import STEPS, Pace
from rewardserve.service.inference.batcher import Batcher
from rewardserve.service.inference.encode_pool import Encoder
from rewardserve.service.inference.numeric_noise import NumericNoise, made_up_rows, numeric_noise
from rewardserve.service.inference.outcomes import BatchDone
from rewardserve.service.inference.planner import Limits
from rewardserve.service.inference.score_cache import ScoreCache
from rewardserve.service.inference.watchdog import ScorerState, Watchdog
from rewardserve.service.observability import logs
from rewardserve.service.observability.metrics import Metrics
from rewardserve.service.references import References
from rewardserve.service.scoring import Rooms, Scoring
from rewardserve.service.settings import ModelSettings
from rewardserve.service.tripwires.advice import ADVICE, SAYS
from rewardserve.service.tripwires.baits import Baits
from rewardserve.service.tripwires.board import CANARIES, CANARY_CHANGE, Board, BoardLimits
from rewardserve.service.tripwires.incidents import Incidents
from rewardserve.service.tripwires.reference import Reference, Yardstick, usual
from rewardserve.service.tripwires.units import units
from rewardserve.service.tripwires.wire import CANARY, Finding
from rewardserve.service.watch import Allowance, Watch
from rewardserve.service.webhook import Webhook

_CANARY_STDS, _CANARY_NOISES = 0.01, 4.0

_NO_EPOCH = 0
"""Of the audit judge, which nobody is served by."""

FIRST_BUDGET = {"cpu": 1024, "cuda": 8192}
"""Tokens of a batch, by device, until the forwards themselves have said what they take; of a scorer that streams, for good."""
LARGEST_BATCH_TOKENS = STEPS[-1]


@dataclass(frozen=True, slots=True)
class Commons:
    """What all models of a process have in common, however many are loaded."""

    settings: ModelSettings
    admission: Admission
    metrics: Metrics
    clock: Clock
    board: Board
    allowance: Allowance
    lexicon: Lexicon
    baits: Baits | None = None
    evidence_room: EvidenceRoom | None = None
    webhook: Webhook | None = None
    judge: AuditJudge | None = None
    scorer_timeout_s: float = 0.0
    incidents: Incidents = field(default_factory=Incidents)

    async def close(self) -> None:
        """When no model scores any more."""
        if self.judge is not None:
            await self.judge.stop()
        if self.evidence_room is not None:
            self.evidence_room.close()


@dataclass(frozen=True, slots=True)
class Prepared:
    """A loaded model that has been measured, but has no rooms around it yet."""

    loaded: LoadedModel
    pipeline: Pipeline
    noise: NumericNoise | None = None
    canaries: Canaries | None = None


@dataclass(frozen=True, slots=True)
class Engine:
    """The rooms around one loaded model."""

    version: int
    loaded: LoadedModel
    pipeline: Pipeline
    noise: NumericNoise | None
    encoder: Encoder
    batcher: Batcher
    watch: Watch
    scoring: Scoring
    canaries: Canaries
    singing: asyncio.Task[None]
    references: References | None = None

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
        self.singing.cancel()
        await self.batcher.stop()
        if self.references is not None:
            self.references.close()
        self.encoder.close()
        # Waits for processes, where the scorer has some: answers are being written meanwhile.
        await asyncio.to_thread(self.loaded.scorer.close)


def prepare(settings: ModelSettings) -> Prepared:
    """Load a model and measure it. Raise `LoadError`, `PipelineError` or `CalibrationError`. Takes its time."""
    loaded, pipeline = load_model(settings)
    try:
        noise = measure_noise(settings, loaded)
        return Prepared(loaded, pipeline, noise, hatch(settings, loaded, noise))
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
        rows = made_up_rows(loaded.identity.max_tokens)
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
    return loaded, build_pipeline(loaded.opinions, settings.reward_settings())


def load_audit(settings: ModelSettings) -> LoadedModel | None:
    """The audit model, if there is to be one. Raise `LoadError`."""
    if not settings.audit_model:
        return None
    audit = load(settings.backend, settings.model_spec(settings.audit_model))
    if audit.calibration is None:
        raise LoadError(
            f"REWARD_AUDIT_MODEL={settings.audit_model} has no fitted statistics, so its scores cannot be compared with "
            "anybody's. Fit them with `reward-train calibrate`."
        )
    return audit


def hatch(settings: ModelSettings, loaded: LoadedModel, noise: NumericNoise | None) -> Canaries:
    """Canaries that have sung once. Raise `LoadError`. Takes a forward; a backend without weights has nothing to change.

    A score may change by a hundredth of a standard deviation, or by a few times the noise, which is larger in half precision.
    """
    try:
        known = canary_pairs(settings.tripwires.canaries_file or SHIPPED)
    except CanariesError as error:
        raise LoadError(f"REWARD_TRIPWIRES__CANARIES_FILE: {error}") from None
    std = loaded.calibration.std if loaded.calibration else 1.0
    allowed = max(_CANARY_STDS * std, _CANARY_NOISES * noise.max if noise else 0.0)
    canaries = Canaries(known if loaded.identity.n_parameters else [], loaded.encode, loaded.identity, allowed)
    canaries.begin(lambda batch: [loaded.identity.raw(heads) for heads in loaded.scorer.score(batch).rows])
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
    plan = settings.wire_plan()
    limits = BoardLimits(
        window=settings.tripwires.window,
        votes_for_a_page=plan.votes_for_a_page,
        ended_s=settings.tripwires.run_ends_s,
        blocks=frozenset(plan.block),
    )
    board = Board(Yardstick(), limits, plan.wires)
    metrics.watch_runs(board, clock.now)
    return Commons(
        settings,
        admission,
        metrics,
        clock,
        board,
        Allowance(settings.tripwires.cpu_share, clock.now()),
        Lexicon.read([Path(name) for name in plan.lexicons]),
        settings.read_baits(),
        _build_evidence_room(settings),
        webhook,
        _build_judge(settings, audit, clock, metrics) if audit is not None else None,
        scorer_timeout_s,
    )


def build_engine(commons: Commons, prepared: Prepared, version: int) -> Engine:
    """The rooms around a loaded model. The batcher is running when this returns."""
    settings, metrics, clock = commons.settings, commons.metrics, commons.clock
    loaded, pipeline, log = prepared.loaded, prepared.pipeline, logs.logger("batcher")
    encoder = Encoder(loaded.encode, settings.encoder_threads, lambda error: log.error("encoder_bug", exc_info=error))
    watchdog = Watchdog(commons.scorer_timeout_s) if commons.scorer_timeout_s else None
    tell_of_batches, tell_of_scorer = _tell_of_batches(metrics, log), _tell_of_scorer(log)
    batcher = _build_batcher(settings, loaded, clock, tell_of_batches, version, watchdog, tell_of_scorer)
    references = _build_references(settings, loaded, pipeline)
    watch = _build_watch(commons, prepared, references, version)
    metrics.model_loaded(version, loaded.calibration, pipeline)
    batcher.start()
    canaries = prepared.canaries or Canaries([], loaded.encode, loaded.identity, 1.0)

    if lost := canaries.failing:
        logs.logger("canaries").warning(
            "canaries_failing", model=loaded.identity.name, n=len(canaries.first),
            failing={each.name: round(each.margin, 4) for each in lost},
            meaning="this model scores these exploits at least as high as the honest answer; a policy will find them",
        )  # fmt: skip

    def changed(names: list[str], by: float) -> None:
        watch.report(CANARIES, Finding(CANARY, "page", by, CANARY_CHANGE, None, tuple(names)))

    singing = asyncio.create_task(
        canaries.keep_singing(batcher, settings.tripwires.canaries_every_s, changed), name="canaries"
    )
    singing.add_done_callback(logs.tell_of_death)
    rooms = Rooms(version, commons.admission, encoder, batcher, pipeline, watch, metrics, clock)
    return Engine(
        version,
        loaded,
        pipeline,
        prepared.noise,
        encoder,
        batcher,
        watch,
        Scoring(rooms, loaded.identity.max_tokens),
        canaries,
        singing,
        references,
    )


def _build_watch(commons: Commons, prepared: Prepared, references: References | None, version: int) -> Watch:
    log, settings = logs.logger("tripwires"), commons.settings
    loaded, pipeline, webhook = prepared.loaded, prepared.pipeline, commons.webhook
    says = {wire.name: wire.says for wire in commons.board.wires} | SAYS
    unit = units(commons.board.wires)

    def tell(run: str, finding: Finding) -> None:
        known = commons.board.runs.get(run)
        notice = commons.incidents.notice(run, finding, known.alarms if known is not None else ())
        if webhook is not None and notice is not None:
            webhook.tell({"run": run, **finding._asdict(), "says": says[finding.wire],
                          "measured": unit[finding.wire].measured(finding.statistic),
                          "beyond": unit[finding.wire].measured(finding.threshold),
                          "incident": notice.incident, "cause": notice.cause, "update": notice.is_update,
                          **asdict(ADVICE[finding.wire]),
                          "model": loaded.identity.name, "model_version": version, "pipeline": pipeline.digest})  # fmt: skip
        level = log.error if finding.severity == "page" else log.warning if finding.severity == "warn" else log.info
        level("tripwire", run=run, wire=finding.wire, severity=finding.severity, statistic=round(finding.statistic, 4),
              threshold=finding.threshold, step=finding.step, evidence=list(finding.evidence))  # fmt: skip

    known = _reference(loaded.calibration, pipeline) if settings.tripwires.reference == "calibration" else Reference()
    parts = pipeline.combination.part_names
    yardstick = Yardstick(known, tuple(parts), model=loaded.identity.name)
    if references is not None:
        yardstick = replace(yardstick, known=references.known, learnt=references.keep)
    return Watch(
        commons.board,
        yardstick,
        commons.lexicon,
        commons.clock,
        tell,
        allowance=commons.allowance,
        judge=commons.judge,
        baits=commons.baits,
        evidence_room=commons.evidence_room,
        parts_of=pipeline.combination.parts if parts else lambda _: (),
        texts_of=loaded.encode.texts,
    )


def _build_references(settings: ModelSettings, loaded: LoadedModel, pipeline: Pipeline) -> References | None:
    folder, log = settings.tripwires.state_dir, logs.logger("references")
    if folder is None:
        return None
    served = hashlib.sha256(f"{loaded.contract.digest} {pipeline.digest}".encode()).hexdigest()
    return References(folder, served, lambda why: log.error("baseline_save_failed", reason=why))


def _build_evidence_room(settings: ModelSettings) -> EvidenceRoom | None:
    folder, log = settings.tripwires.evidence_dir, logs.logger("evidence")
    return EvidenceRoom(folder, lambda why: log.error("evidence_not_written", reason=why)) if folder else None


def _build_judge(settings: ModelSettings, audit: LoadedModel, clock: Clock, metrics: Metrics) -> AuditJudge:
    log = logs.logger("audit")
    encoder = Encoder(audit.encode, 1, lambda error: log.error("encoder_bug", exc_info=error))

    def tell(done: BatchDone) -> None:
        if done.outcome != "ok":
            log.error(f"batch_{done.outcome}", rows=done.n_rows, tokens=done.n_tokens)

    batcher = _build_batcher(settings, audit, clock, tell, _NO_EPOCH)
    batcher.start()
    pipeline = build_pipeline(audit.opinions, RewardSettings(shape="none"))
    share = settings.tripwires.audit_share
    return AuditJudge(
        encoder,
        batcher,
        pipeline,
        share=share,
        skipped=metrics.observe_audit_skipped,
        close=audit.scorer.close,
    )


def _reference(calibration: Calibration | None, pipeline: Pipeline) -> Reference:
    """What the calibration says is usual; of a combination of its own it says nothing of the scores."""
    if calibration is None:
        return Reference()
    known = {trait.name: usual(trait.name, trait.mean, trait.std) for trait in calibration.traits}
    if pipeline.combination.how != "sum" or not calibration.quantiles:
        return Reference(known)
    scale = pipeline.combination.members[0].scale
    known["level"] = usual("level", (calibration.mean - scale.mean) / scale.std, calibration.std / scale.std)
    return Reference(known, saturation=(calibration.quantiles[-1][1] - scale.mean) / scale.std)


def _build_batcher(
    settings: ModelSettings,
    loaded: LoadedModel,
    clock: Clock,
    tell: Callable[[BatchDone], None],
    version: int,
    watchdog: Watchdog | None = None,
    tell_of_scorer: Callable[[ScorerState], None] = lambda state: None,
) -> Batcher:
    fixed, first = settings.batching.max_tokens, _first_budget(loaded.identity.device)
    keeps_budget = bool(fixed) or loaded.scorer.streams
    return Batcher(
        loaded.scorer,
        Limits(fixed or LARGEST_BATCH_TOKENS, settings.batching.linger_ms / 1000, enough_tokens=fixed or first),
        clock,
        tell,
        pace=None if keeps_budget else Pace.starting_at(first),
        cache=ScoreCache(settings.cache.scores, version),
        watchdog=watchdog,
        on_state=tell_of_scorer,
    )


def _first_budget(device: str) -> int:
    return FIRST_BUDGET.get(device.partition(":")[0], FIRST_BUDGET["cpu"])


def _tell_of_scorer(log: logs.Logger) -> Callable[[ScorerState], None]:
    def tell(state: ScorerState) -> None:
        level = log.info if state == "well" else log.error
        level("scorer_state", state=state)

    return tell


def _tell_of_batches(metrics: Metrics, log: logs.Logger) -> Callable[[BatchDone], None]:
    def tell(done: BatchDone) -> None:
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

"""The registry of loaded models: load a model beside the one in service, switch requests over, unload the old one.

`deployment` decides which model serves; the registry acts on it. No request is lost: a request is answered by the model that it
began with, and a model is freed when its last request has been answered. Belongs to one event loop. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TypeVar

from rewardserve.model.backends import LoadError
from rewardserve.model.backends.memory import trim_heap
from rewardserve.model.calibration import CalibrationError
from rewardserve.model.resource_errors import describe_resource_error
from rewardserve.model.reward import PipelineError
from rewardserve.service.clock import utc_now
from rewardserve.service.errors import (
    InvalidRequest,
    LoadInProgress,
    ModelRefused,
    NothingIsLoading,
    NothingToRollBack,
    ShuttingDown,
    VersionGone,
    VersionInUse,
)
from rewardserve.service.inference.background_scorer import BackgroundScorer
from rewardserve.service.inference.shadow import Shadow
from rewardserve.service.models.active_models import ActiveModels
from rewardserve.service.models.deployment import (
    DeploymentState,
    DeploymentStatus,
    LoadStatus,
    RefusedLoad,
    Source,
)
from rewardserve.service.models.loading import PreparedModel, prepare_model
from rewardserve.service.models.runtime import ModelRuntime, start_runtime
from rewardserve.service.models.shared_resources import SharedResources
from rewardserve.service.observability import logs
from rewardserve.service.observability.metrics import Metrics
from rewardserve.service.settings import AUTO_AUDIT_MODEL, ModelSettings
from rewardserve.service.tripwires.run_table import CANARIES, OTHER

T = TypeVar("T")

FIRST_VERSION = 1
LOAD_ERRORS = (LoadError, PipelineError, CalibrationError)
"""The reason why a model cannot be served, for an operator."""


class ModelRegistry:
    """The registry of the models of this process. Starts with one that is loaded already.

    A load that takes longer than `load_timeout_s` is aborted; 0: no limit.
    """

    def __init__(
        self,
        resources: SharedResources,
        active_models: ActiveModels,
        first: PreparedModel,
        source: Source,
        keep: int,
        load_timeout_s: float = 0.0,
    ) -> None:
        self._resources = resources
        self._active_models = active_models
        self._keep = keep
        self._log = logs.logger("models")
        self._sources: dict[int, Source] = {}
        self._runtimes: dict[int, ModelRuntime] = {}
        self._unloading: set[asyncio.Task[None]] = set()
        self._loading: LoadStatus | None = None
        self._load: asyncio.Task[int] | None = None
        self._preparing: asyncio.Future[PreparedModel] | None = None
        self._is_cancelled = False
        self._load_timeout_s = load_timeout_s
        self._refused: RefusedLoad | None = None
        self._next_version = FIRST_VERSION
        self._deployment = DeploymentState((self._activate_prepared(first, source),))
        resources.metrics.watch_models(self)
        self._publish()
        if resources.state_keeper is not None:
            resources.state_keeper.start(self.serving.watcher.baseline_source)

    @property
    def serving(self) -> ModelRuntime:
        """The model in service."""
        return self._runtimes[self._deployment.serving]

    @property
    def shadow_version(self) -> int | None:
        """The version of the shadow, if there is one."""
        return self._deployment.shadow

    # -- state for metrics ------------------------------------------------------------------------------------------

    @property
    def n_queued_samples(self) -> int:
        """Queued rows of all models."""
        return sum(each.batcher.n_samples for each in self._runtimes.values())

    @property
    def n_queued_tokens(self) -> int:
        """Queued tokens of all models."""
        return sum(each.batcher.n_tokens for each in self._runtimes.values())

    @property
    def batch_budget_tokens(self) -> int:
        """Batch budget of the model in service, in tokens."""
        return self.serving.batcher.limits.target

    @property
    def is_scorer_hanging(self) -> bool:
        """Whether a forward of the model in service hangs."""
        return self.serving.batcher.scorer_state != "healthy"

    @property
    def device_memory(self) -> tuple[int, int]:
        """Used and total bytes of the device's memory."""
        return self.serving.loaded.memory()

    @property
    def canary_margins(self) -> dict[str, float]:
        """Raw score of each honest answer above that of its exploit, by canary."""
        return {canary.name: canary.margin for canary in self.serving.canaries.latest}

    @property
    def status(self) -> DeploymentStatus:
        """The loaded models, and the role of each."""
        deployment = self._deployment
        models = tuple(
            self._runtimes[version].status(deployment.state_of(version), deployment.pinned_to(version))
            for version in deployment.loaded
        )
        return DeploymentStatus(
            deployment.serving, deployment.previous, self._loading, self._refused, models, deployment.pins
        )

    # -- operations -------------------------------------------------------------------------------------------------

    async def load(self, source: Source, *, shadow: float = 0.0, pin: Collection[str] | None = ()) -> int:
        """Load a model beside the one in service, then switch, or compare on a share `shadow` of the samples. Return its version.

        `pin` are runs that stay with their model; None: all that are watched. Raise `LoadInProgress`, `ModelRefused` or
        `ShuttingDown`: then nothing has changed. A load goes on after its caller was cancelled.
        """
        return await self._run_load(source, lambda: self._load_and_switch(source, shadow, pin))

    async def load_again(self) -> None:
        """Load the model of the settings again, from the same path. An error is logged and counted."""
        while self._load is not None:
            await asyncio.wait({self._load})
        with contextlib.suppress(ModelRefused):
            await self.load(self._sources[FIRST_VERSION])

    def cancel_load(self) -> None:
        """Abort the load in progress: it is refused, and another one can begin. Raise `NothingIsLoading`.

        The loading thread cannot be interrupted; a model that it still loads is freed.
        """
        if self._preparing is None or self._preparing.done():
            raise NothingIsLoading("no model is being loaded; see GET /admin/models")
        self._is_cancelled = True
        self._preparing.cancel()

    def activate(self, version: int) -> None:
        """Put a loaded model into service. Raise `VersionGone`."""
        self._check_loaded(version)
        self._apply(self._deployment.activated(version))

    async def roll_back(self) -> int:
        """Go back to the previous model in service: at once if it is still loaded, otherwise it is loaded again.

        Return the version that is now in service. Raise `NothingToRollBack`, `LoadInProgress` or `ModelRefused`.
        """
        previous = self._deployment.previous
        if previous is None:
            raise NothingToRollBack("no other model was in service before this one")
        if previous not in self._runtimes:
            source = self._sources[previous]
            return await self._run_load(source, lambda: self._load_and_roll_back(source))
        self._apply(self._deployment.rolled_back(previous))
        return previous

    def retire(self, version: int) -> None:
        """Unload a model on standby, or the shadow. Raise `VersionGone` or `VersionInUse`."""
        self._check_loaded(version)
        deployment = self._deployment
        if runs := deployment.pinned_to(version):
            raise VersionInUse("runs are pinned to this model", version=version, n_runs=len(runs))
        if version == deployment.serving:
            raise VersionInUse("this model is in service", version=version)
        self._apply(deployment.without_shadow() if version == deployment.shadow else deployment.without(version))

    def pin(self, run: str, version: int | None) -> None:
        """Pin the run to this model; None: to none. Raise `VersionGone` or `VersionInUse`."""
        if version is not None:
            self._check_loaded(version)
            if version == self._deployment.shadow:
                raise VersionInUse(
                    "this model only scores beside the one in service; activate it first", version=version
                )
            self._apply(self._deployment.pinned({run: version}))
        else:
            self._apply(self._deployment.unpinned(run))

    async def close(self) -> None:
        """Drain and free every model, without waiting for one that is being loaded."""
        if self._load is not None:
            self._load.cancel()
        for runtime in tuple(self._runtimes.values()):  # a SIGHUP may still change them
            await runtime.stop()
        await asyncio.gather(*self._unloading, return_exceptions=True)
        await self._resources.close()

    async def abort(self) -> None:
        """Refuse all unfinished rows, and save the state of runs."""
        for runtime in tuple(self._runtimes.values()):
            await runtime.batcher.abort()
        for task in self._unloading:
            task.cancel()
        await self._resources.save_state()

    # -- loading ----------------------------------------------------------------------------------------------------

    async def _run_load(self, source: Source, work: Callable[[], Awaitable[int]]) -> int:
        if self._loading is not None:
            raise LoadInProgress(
                f"{self._loading.source} is being loaded since {self._loading.since}; try again when it is loaded"
            )
        self._loading = LoadStatus(str(source), utc_now())
        self._load = asyncio.ensure_future(work())
        self._load.add_done_callback(self._load_finished)
        load = self._load
        try:
            return await asyncio.shield(load)
        except asyncio.CancelledError:
            if not load.cancelled():
                raise  # the caller was cancelled; the load goes on
            raise ShuttingDown("this server is shutting down and has aborted the load", retry_after_s=1.0) from None

    def _load_finished(self, task: asyncio.Task[int]) -> None:
        self._loading = self._load = None
        if not task.cancelled():
            task.exception()  # the client of the request may be gone

    async def _load_and_switch(self, source: Source, shadow: float, pin: Collection[str] | None) -> int:
        version = await self._load_model(source)
        deployment = self._deployment
        if shadow > 0.0:
            self._runtimes[version].shadow = self._shadow_of(self._runtimes[version], shadow)
            self._apply(deployment.with_shadow(version))
        else:
            runs = {run.name for run in self._resources.monitor.runs.values() if run.name} if pin is None else pin
            stay = {run: deployment.pins.get(run, deployment.serving) for run in runs if run not in (OTHER, CANARIES)}
            self._apply(deployment.pinned(stay).activated(version))
        return version

    async def _load_and_roll_back(self, source: Source) -> int:
        version = await self._load_model(source)
        self._apply(self._deployment.rolled_back(version))
        return version

    async def _load_model(self, source: Source) -> int:
        """Load a new version without deploying it. Raise `ModelRefused`."""
        settings = settings_for(source, self._resources.settings)
        self._log.info("model_loading", source=str(source))
        try:
            prepared = await self._prepare(settings)
        except Exception as error:
            # Only messages written for an operator are passed on; any other exception may quote anything.
            why = (
                str(error)
                if isinstance(error, LOAD_ERRORS)
                else describe_resource_error(error) or f"{type(error).__name__}; see the log for the place"
            )
            self._refused = RefusedLoad(str(source), why, utc_now())
            self._resources.metrics.observe_load("refused")
            self._log.error("model_refused", source=str(source), reason=why.splitlines(), exc_info=error)
            raise ModelRefused(why) from None
        self._resources.metrics.observe_load("ok")
        return self._activate_prepared(prepared, source)

    async def _prepare(self, settings: ModelSettings) -> PreparedModel:
        """Load a model. Raise `LoadError` also for a load that took too long or was cancelled."""
        self._is_cancelled = False
        self._preparing = in_daemon_thread(lambda: prepare_model(settings), "loader", PreparedModel.close)
        try:
            async with asyncio.timeout(self._load_timeout_s or None):
                return await self._preparing
        except TimeoutError:
            raise LoadError(
                f"loading took longer than REWARD_SWAP__LOAD_TIMEOUT_S={self._load_timeout_s:g} and was aborted. Look whether the "
                "files can be read, and raise it for a model that is slow to load."
            ) from None
        except asyncio.CancelledError:
            if not self._is_cancelled:
                raise
            raise LoadError("an operator has cancelled the load") from None
        finally:
            self._preparing = None

    def _activate_prepared(self, prepared: PreparedModel, source: Source) -> int:
        version, self._next_version = self._next_version, self._next_version + 1
        self._sources[version] = source
        runtime = start_runtime(self._resources, prepared, version, source)
        for note in runtime.loaded.identity.engine_notes:
            self._log.info("engine_note", version=version, engine=runtime.loaded.identity.engine, note=note)
        for breach in runtime.loaded.report.breaches:
            self._log.warning(
                "contract_broken", version=version, clause=breach.clause, message=breach.message, remedy=breach.remedy
            )
        self._log_judge(runtime)
        self._runtimes[version] = runtime
        return version

    def _log_judge(self, runtime: ModelRuntime) -> None:
        judge = runtime.judge
        if judge is not None:
            self._log.info("audit_judge", version=runtime.version, **judge.description)
        elif self._resources.settings.audit_model == AUTO_AUDIT_MODEL:
            self._log.warning(
                "audit_judge_missing", version=runtime.version,
                meaning="REWARD_AUDIT_MODEL=auto, and no audit judge lies beside this model: what only the model pays for is not "
                "seen. Train one with the section audit_judge of a recipe, or name a model",
            )  # fmt: skip

    def _shadow_of(self, runtime: ModelRuntime, share: float) -> Shadow:
        background_scorer = BackgroundScorer(runtime.encode_pool, runtime.batcher, runtime.pipeline)
        return Shadow(background_scorer, share, _ShadowReport(self, self._resources.metrics, runtime.version))

    # -- switching --------------------------------------------------------------------------------------------------

    def _apply(self, deployment: DeploymentState) -> None:
        """Apply a deployment state, from the next request on. Never waits."""
        for version in deployment.to_unload(self._keep):
            deployment = deployment.without(version)
        before, self._deployment = self._deployment, deployment
        if deployment.serving != before.serving:
            self._log.info(
                "model_serving", version=deployment.serving, source=str(self.serving.source), before=before.serving
            )
        if deployment.shadow != before.shadow:
            self._resources.metrics.clear_shadow()
        self._publish()
        for version in [version for version in self._runtimes if version not in deployment.loaded]:
            task = asyncio.create_task(self._unload(self._runtimes.pop(version)), name="unload model")
            self._unloading.add(task)
            task.add_done_callback(self._unloading.discard)
            task.add_done_callback(logs.log_task_exception)

    def _publish(self) -> None:
        """Publish the deployment to the routes and the metrics."""
        deployment, runtimes = self._deployment, self._runtimes
        self._resources.monitor.baseline_source = self.serving.watcher.baseline_source
        if self._resources.attribution is not None:
            judge = self.serving.judge
            self._resources.attribution.judge = judge.edit_scorer if judge is not None else None
        others = [runtimes[version] for version in deployment.standby]
        self._active_models.set_models(self.serving, others, deployment.pins)
        self._resources.metrics.set_models(
            deployment.serving,
            [{**runtimes[version].labels, "state": deployment.state_of(version)} for version in deployment.loaded],
        )
        shadow = None if deployment.shadow is None else runtimes[deployment.shadow].shadow
        for version, runtime in runtimes.items():
            runtime.scoring.shadow = shadow if version == deployment.serving else None

    async def _unload(self, runtime: ModelRuntime) -> None:
        """Free a model after its last request is answered."""
        version = runtime.version
        await runtime.scoring.idle.wait()
        await runtime.stop()
        self._resources.metrics.model_unloaded(version)
        del runtime
        gc.collect()  # frees cycles; objects frozen at start are not scanned
        await asyncio.to_thread(trim_heap)
        self._log.info("model_unloaded", version=version)

    def _check_loaded(self, version: int) -> None:
        if version not in self._runtimes:
            raise VersionGone("no model of this version is loaded; see GET /admin/models", version=version)


@dataclass(frozen=True, slots=True)
class _ShadowReport:
    """Count the comparisons of a shadow, as long as it is the shadow."""

    registry: ModelRegistry
    metrics: Metrics
    version: int

    def on_compared(self, n_samples: int, orders: Mapping[str, int], figures: Mapping[str, float | None]) -> None:
        if self.registry.shadow_version == self.version:
            self.metrics.observe_shadow("compared", n_samples, orders)
            self.metrics.set_shadow(self.version, figures)

    def on_skipped(self, n_samples: int) -> None:
        self.metrics.observe_shadow("skipped", n_samples, {})


def settings_for(source: Source, settings: ModelSettings) -> ModelSettings:
    """The settings of the process, with another model. Raise `InvalidRequest`."""
    changed = settings.model_copy(update={"model": source.model, "ensemble": source.ensemble})
    try:
        changed.named_models()
    except ValueError as error:
        raise InvalidRequest(str(error), field="ensemble") from None
    return changed


def tune_garbage_collector() -> None:
    """Freeze the loaded objects for the garbage collector, and make it run rarely: reference counts free the objects of requests.

    By default the collector scans every row of ids several times for cycles that do not exist: a fifth of the server's
    CPU time without the model. A scan of the objects of a model stops the process for a moment.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD, *gc.get_threshold()[1:])


_GC_THRESHOLD = 50_000
"""More objects than all samples in flight have, so that only leaked cycles call the garbage collector."""


def in_daemon_thread(
    work: Callable[[], T], name: str, discard: Callable[[T], object] = lambda _: None
) -> asyncio.Future[T]:
    """Run `work` on a daemon thread and return its future. Unlike with an executor, the process may end while it runs.

    A result that comes after the future was cancelled is passed to `discard`, on the same thread.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            if error is None:
                threading.Thread(target=discard, args=(result,), name=name, daemon=True).start()
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result: T | None
        error: BaseException | None
        try:
            result, error = work(), None
        except BaseException as raised:
            result, error = None, raised
        if future.cancelled():
            if error is None:
                discard(result)  # type: ignore[arg-type]
            return
        with contextlib.suppress(RuntimeError):  # the loop may be closed by now
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future

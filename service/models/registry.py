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
from datetime import UTC, datetime
from typing import TypeVar

from rewardserve.model.backends import LoadError
from rewardserve.model.backends.memory import trim_heap
from rewardserve.model.calibration import CalibrationError
from rewardserve.model.resource_errors import describe_resource_error
from rewardserve.model.reward import PipelineError
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
from rewardserve.service.settings import ModelSettings
from rewardserve.service.tripwires.run_monitor import CANARIES, OTHER

T = TypeVar("T")

FIRST_VERSION = 1
LOAD_ERRORS = (LoadError, PipelineError, CalibrationError)
"""Why a model cannot be served, in words for an operator."""


class ModelRegistry:
    """The models of this process, one after the other. Begins with one that is loaded already.

    A load that takes longer than `load_timeout_s` is given up; 0: it may take for ever.
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

    @property
    def serving(self) -> ModelRuntime:
        """The model in service."""
        return self._runtimes[self._deployment.serving]

    # -- what metrics show ------------------------------------------------------------------------------------------

    @property
    def n_queued_samples(self) -> int:
        """Rows that wait for a batch, of any model."""
        return sum(each.batcher.n_samples for each in self._runtimes.values())

    @property
    def n_queued_tokens(self) -> int:
        """Tokens that wait for a batch, of any model."""
        return sum(each.batcher.n_tokens for each in self._runtimes.values())

    @property
    def batch_budget_tokens(self) -> int:
        """Tokens that are enough for a batch of the model in service."""
        return self.serving.batcher.limits.target

    @property
    def is_scorer_hanging(self) -> bool:
        """Whether a forward of the model in service does not come back."""
        return self.serving.batcher.scorer_state != "healthy"

    @property
    def device_memory(self) -> tuple[int, int]:
        """Bytes of the device that are used, and bytes that it has."""
        return self.serving.loaded.memory()

    @property
    def canary_margins(self) -> dict[str, float]:
        """Raw score of each honest answer above that of its exploit, by canary."""
        return {canary.name: canary.margin for canary in self.serving.canaries.latest}

    @property
    def status(self) -> DeploymentStatus:
        """Which models are loaded, and what for."""
        deployment = self._deployment
        models = tuple(
            self._runtimes[version].status(deployment.state_of(version), deployment.pinned_to(version))
            for version in deployment.loaded
        )
        return DeploymentStatus(
            deployment.serving, deployment.previous, self._loading, self._refused, models, deployment.pins
        )

    # -- what an operator can do ------------------------------------------------------------------------------------

    async def load(self, source: Source, *, shadow: float = 0.0, pin: Collection[str] | None = ()) -> int:
        """Load beside the one in service, then switch, or let it score a share `shadow` of the samples for comparison first.

        `pin` are runs that stay with the model they have; None: all that are watched. The new version. Raise `LoadInProgress`,
        `ModelRefused` or `ShuttingDown`: then nothing has changed. Whoever calls may leave: the load goes on.
        """
        return await self._run_load(source, lambda: self._load_and_switch(source, shadow, pin))

    async def load_again(self) -> None:
        """What this process was started with, from where it was. What is wrong with it is logged and counted."""
        while self._load is not None:
            await asyncio.wait({self._load})
        with contextlib.suppress(ModelRefused):
            await self.load(self._sources[FIRST_VERSION])

    def cancel_load(self) -> None:
        """Give up the load that is going on: it is refused, and others can begin. Raise `NothingIsLoading`.

        What the loading thread waits for cannot be interrupted; what it brings in the end is freed.
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
        """Back to the model that was in service before: at once if it is still loaded, otherwise it is loaded again.

        The version in service now. Raise `NothingToRollBack`, `LoadInProgress` or `ModelRefused`.
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
        """Let go of a model that only stands by, or of the shadow. Raise `VersionGone` or `VersionInUse`."""
        self._check_loaded(version)
        deployment = self._deployment
        if runs := deployment.pinned_to(version):
            raise VersionInUse("runs are pinned to this model", version=version, n_runs=len(runs))
        if version == deployment.serving:
            raise VersionInUse("this model is in service", version=version)
        self._apply(deployment.without_shadow() if version == deployment.shadow else deployment.without(version))

    def pin(self, run: str, version: int | None) -> None:
        """From now on only this model answers the run; None: the one in service. Raise `VersionGone` or `VersionInUse`."""
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
        """Every model finishes what it has, and is freed. One that is being loaded is not waited for."""
        if self._load is not None:
            self._load.cancel()
        for runtime in tuple(self._runtimes.values()):  # a SIGHUP may still change them
            await runtime.stop()
        await asyncio.gather(*self._unloading, return_exceptions=True)
        await self._resources.close()

    async def abort(self) -> None:
        """Refuse everything that is not finished."""
        for runtime in tuple(self._runtimes.values()):
            await runtime.batcher.abort()
        for task in self._unloading:
            task.cancel()

    # -- loading ----------------------------------------------------------------------------------------------------

    async def _run_load(self, source: Source, work: Callable[[], Awaitable[int]]) -> int:
        if self._loading is not None:
            raise LoadInProgress(
                f"{self._loading.source} is being loaded since {self._loading.since}; try again when it is there"
            )
        self._loading = LoadStatus(str(source), _utc_now())
        self._load = asyncio.ensure_future(work())
        self._load.add_done_callback(self._load_finished)
        load = self._load
        try:
            return await asyncio.shield(load)
        except asyncio.CancelledError:
            if not load.cancelled():
                raise  # the caller was cancelled; the load goes on
            raise ShuttingDown("this server is shutting down and has given up the load", retry_after_s=1.0) from None

    def _load_finished(self, task: asyncio.Task[int]) -> None:
        self._loading = self._load = None
        if not task.cancelled():
            task.exception()  # the request that asked for it may be gone

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
        """Load a new version, which is not deployed yet. Raise `ModelRefused`."""
        settings = settings_for(source, self._resources.settings)
        self._log.info("model_loading", source=str(source))
        try:
            prepared = await self._prepare(settings)
        except Exception as error:
            # Only what was written for an operator is passed on; any other exception may quote anything.
            why = (
                str(error)
                if isinstance(error, LOAD_ERRORS)
                else describe_resource_error(error) or f"{type(error).__name__}; the log says where"
            )
            self._refused = RefusedLoad(str(source), why, _utc_now())
            self._resources.metrics.observe_load("refused")
            self._log.error("model_refused", source=str(source), reason=why.splitlines(), exc_info=error)
            raise ModelRefused(why) from None
        self._resources.metrics.observe_load("ok")
        return self._activate_prepared(prepared, source)

    async def _prepare(self, settings: ModelSettings) -> PreparedModel:
        """A loaded model. Raise `LoadError` also for a load that took too long or was cancelled."""
        self._is_cancelled = False
        self._preparing = in_daemon_thread(
            lambda: prepare_model(settings), "loader", lambda late: late.loaded.scorer.close()
        )
        try:
            async with asyncio.timeout(self._load_timeout_s or None):
                return await self._preparing
        except TimeoutError:
            raise LoadError(
                f"loading took longer than REWARD_SWAP__LOAD_TIMEOUT_S={self._load_timeout_s:g} and was given up. Look whether the "
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
        self._runtimes[version] = runtime
        return version

    def _shadow_of(self, runtime: ModelRuntime, share: float) -> Shadow:
        metrics = self._resources.metrics

        def on_comparison(n: int, orders: Mapping[str, int]) -> None:
            if self._deployment.shadow == runtime.version:
                metrics.observe_shadow("compared", n, orders)
                metrics.set_shadow(runtime.version, shadow.agreement.figures)

        background_scorer = BackgroundScorer(
            runtime.encode_pool, runtime.batcher, runtime.pipeline, lambda n: metrics.observe_shadow("skipped", n, {})
        )
        shadow = Shadow(background_scorer, share, on_comparison)
        return shadow

    # -- switching --------------------------------------------------------------------------------------------------

    def _apply(self, deployment: DeploymentState) -> None:
        """Apply a deployment state. It holds from the next request on; nothing here waits."""
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
        """Free a model once its last request is answered."""
        version = runtime.version
        await runtime.scoring.idle.wait()
        await runtime.stop()
        self._resources.metrics.model_unloaded(version)
        del runtime
        gc.collect()  # what counting references leaves behind; what was there at the start is spared
        await asyncio.to_thread(trim_heap)
        self._log.info("model_unloaded", version=version)

    def _check_loaded(self, version: int) -> None:
        if version not in self._runtimes:
            raise VersionGone("no model of this version is loaded; see GET /admin/models", version=version)


def settings_for(source: Source, settings: ModelSettings) -> ModelSettings:
    """Those of the process, for another model. Raise `InvalidRequest`."""
    changed = settings.model_copy(update={"model": source.model, "ensemble": source.ensemble})
    try:
        changed.named_models()
    except ValueError as error:
        raise InvalidRequest(str(error), field="ensemble") from None
    return changed


def tune_garbage_collector() -> None:
    """What is loaded by now stays, and what requests are made of is freed by counting references.

    By default the collector looks through every row of ids several times for cycles that are not there: a fifth of all
    CPU time of the server itself. Looking through what a model is made of stops everything for a moment.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_GC_THRESHOLD, *gc.get_threshold()[1:])


_GC_THRESHOLD = 50_000
"""More objects than all samples in flight have, so that only leaked cycles call the garbage collector."""


def in_daemon_thread(
    work: Callable[[], T], name: str, discard: Callable[[T], object] = lambda _: None
) -> asyncio.Future[T]:
    """The future result of `work`. Unlike with an executor, the process may end while it runs.

    A result that comes when the future was cancelled is given to `discard`, on the same thread.
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


def _utc_now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

"""How one model follows another in a running server: loads it beside, hands the requests over, and lets the old one go.

`roster` decides who serves; here it is done. No request is lost: whoever was let in is answered by the model that he was let in
to, and that one is freed when its last request has been answered. Belongs to one event loop. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
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
from rewardserve.service.models.active_models import ActiveModels, ServedModel
from rewardserve.service.models.deployment import Loaded, Loading, Overview, Refused, Roster, Source
from rewardserve.service.models.runtime import Commons, Engine, Prepared, build_engine, prepare
from rewardserve.service.observability import logs
from rewardserve.service.settings import ModelSettings
from rewardserve.service.tripwires.run_monitor import CANARIES, OTHER

T = TypeVar("T")

FIRST_EPOCH = 1
REFUSALS = (LoadError, PipelineError, CalibrationError)
"""Why a model cannot be served, in words for an operator."""


@dataclass(slots=True)
class Tenure:
    """A model that is loaded, with what it came from."""

    engine: Engine
    served: ServedModel
    source: Source
    loaded_at: str
    shadow: Shadow | None = None


class Succession:
    """The models of this process, one after the other. Begins with one that is loaded already.

    A load that takes longer than `load_timeout_s` is given up; 0: it may take for ever.
    """

    def __init__(
        self,
        commons: Commons,
        stage: ActiveModels,
        first: Prepared,
        source: Source,
        keep: int,
        load_timeout_s: float = 0.0,
    ) -> None:
        self._commons = commons
        self._stage = stage
        self._keep = keep
        self._log = logs.logger("models")
        self._sources: dict[int, Source] = {}
        self._tenures: dict[int, Tenure] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._loading: Loading | None = None
        self._load: asyncio.Task[int] | None = None
        self._preparing: asyncio.Future[Prepared] | None = None
        self._is_cancelled = False
        self._load_timeout_s = load_timeout_s
        self._refused: Refused | None = None
        self._next_version = FIRST_EPOCH
        self._roster = Roster((self._settle_in(first, source),))
        commons.metrics.watch_queue(
            lambda: sum(each.engine.batcher.n_samples for each in self._tenures.values()),
            lambda: self.n_queued_tokens,
            lambda: self.serving.engine.batcher.limits.target,
        )
        commons.metrics.watch_memory(self._memory)
        commons.metrics.watch_scorer(lambda: self.serving.engine.batcher.scorer_state != "healthy")
        commons.metrics.watch_canaries(
            lambda: {canary.name: canary.margin for canary in self.serving.engine.canaries.latest}
        )
        self._show()

    @property
    def serving(self) -> Tenure:
        """The model in service."""
        return self._tenures[self._roster.serving]

    @property
    def n_queued_tokens(self) -> int:
        """Tokens that wait for a batch, of any model."""
        return sum(each.engine.batcher.n_tokens for each in self._tenures.values())

    @property
    def overview(self) -> Overview:
        """Which models are loaded, and what for."""
        roster = self._roster
        models = tuple(self._described(version) for version in roster.loaded)
        return Overview(roster.serving, roster.previous, self._loading, self._refused, models, roster.pins)

    # -- what an operator can do ------------------------------------------------------------------------------------

    async def load(self, source: Source, *, shadow: float = 0.0, pin: Collection[str] | None = ()) -> int:
        """Load beside the one in service, then switch, or let it score a share `shadow` of the samples for comparison first.

        `pin` are runs that stay with the model they have; None: all that are watched. The new version. Raise `LoadInProgress`,
        `ModelRefused` or `ShuttingDown`: then nothing has changed. Whoever calls may leave: the load goes on.
        """
        return await self._unless_loading(source, lambda: self._follow(source, shadow, pin))

    async def load_again(self) -> None:
        """What this process was started with, from where it was. What is wrong with it is logged and counted."""
        while self._load is not None:
            await asyncio.wait({self._load})
        with contextlib.suppress(ModelRefused):
            await self.load(self._sources[FIRST_EPOCH])

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
        self._change(self._roster.activated(version))

    async def roll_back(self) -> int:
        """Back to the model that was in service before: at once if it is still loaded, otherwise it is loaded again.

        The version in service now. Raise `NothingToRollBack`, `LoadInProgress` or `ModelRefused`.
        """
        previous = self._roster.previous
        if previous is None:
            raise NothingToRollBack("no other model was in service before this one")
        if previous not in self._tenures:
            source = self._sources[previous]
            return await self._unless_loading(source, lambda: self._return(source))
        self._change(self._roster.rolled_back(previous))
        return previous

    def retire(self, version: int) -> None:
        """Let go of a model that only stands by, or of the shadow. Raise `VersionGone` or `VersionInUse`."""
        self._check_loaded(version)
        roster = self._roster
        if runs := roster.pinned_to(version):
            raise VersionInUse("runs are pinned to this model", version=version, n_runs=len(runs))
        if version == roster.serving:
            raise VersionInUse("this model is in service", version=version)
        self._change(roster.without_shadow() if version == roster.shadow else roster.without(version))

    def pin(self, run: str, version: int | None) -> None:
        """From now on only this model answers the run; None: the one in service. Raise `VersionGone` or `VersionInUse`."""
        if version is not None:
            self._check_loaded(version)
            if version == self._roster.shadow:
                raise VersionInUse(
                    "this model only scores beside the one in service; activate it first", version=version
                )
            self._change(self._roster.pinned({run: version}))
        else:
            self._change(self._roster.unpinned(run))

    async def close(self) -> None:
        """Every model finishes what it has, and is freed. One that is being loaded is not waited for."""
        if self._load is not None:
            self._load.cancel()
        for tenure in tuple(self._tenures.values()):  # a SIGHUP may still change them
            await _stop(tenure)
        await asyncio.gather(*self._leaving, return_exceptions=True)
        await self._commons.close()

    async def abort(self) -> None:
        """Refuse everything that is not finished."""
        for tenure in tuple(self._tenures.values()):
            await tenure.engine.batcher.abort()
        for task in self._leaving:
            task.cancel()

    # -- loading ----------------------------------------------------------------------------------------------------

    async def _unless_loading(self, source: Source, work: Callable[[], Awaitable[int]]) -> int:
        if self._loading is not None:
            raise LoadInProgress(
                f"{self._loading.source} is being loaded since {self._loading.since}; try again when it is there"
            )
        self._loading = Loading(str(source), _now())
        self._load = asyncio.ensure_future(work())
        self._load.add_done_callback(self._loaded)
        load = self._load
        try:
            return await asyncio.shield(load)
        except asyncio.CancelledError:
            if not load.cancelled():
                raise  # the caller was cancelled; the load goes on
            raise ShuttingDown("this server is shutting down and has given up the load", retry_after_s=1.0) from None

    def _loaded(self, task: asyncio.Task[int]) -> None:
        self._loading = self._load = None
        if not task.cancelled():
            task.exception()  # whoever asked may have left

    async def _follow(self, source: Source, shadow: float, pin: Collection[str] | None) -> int:
        version = await self._prepare(source)
        roster = self._roster
        if shadow > 0.0:
            self._tenures[version].shadow = self._shadow_of(self._tenures[version].engine, shadow)
            self._change(roster.with_shadow(version))
        else:
            runs = {run.name for run in self._commons.monitor.runs.values() if run.name} if pin is None else pin
            stay = {run: roster.pins.get(run, roster.serving) for run in runs if run not in (OTHER, CANARIES)}
            self._change(roster.pinned(stay).activated(version))
        return version

    async def _return(self, source: Source) -> int:
        version = await self._prepare(source)
        self._change(self._roster.rolled_back(version))
        return version

    async def _prepare(self, source: Source) -> int:
        """A new version, in no roster yet. Raise `ModelRefused`."""
        settings = settings_for(source, self._commons.settings)
        self._log.info("model_loading", source=str(source))
        try:
            prepared = await self._prepared(settings)
        except Exception as error:
            # Only what was written for an operator is passed on; any other exception may quote anything.
            why = (
                str(error)
                if isinstance(error, REFUSALS)
                else describe_resource_error(error) or f"{type(error).__name__}; the log says where"
            )
            self._refused = Refused(str(source), why, _now())
            self._commons.metrics.observe_load("refused")
            self._log.error("model_refused", source=str(source), reason=why.splitlines(), exc_info=error)
            raise ModelRefused(why) from None
        self._commons.metrics.observe_load("ok")
        return self._settle_in(prepared, source)

    async def _prepared(self, settings: ModelSettings) -> Prepared:
        """A loaded model. Raise `LoadError` also for a load that took too long or was cancelled."""
        self._is_cancelled = False
        self._preparing = in_daemon_thread(lambda: prepare(settings), "loader", lambda late: late.loaded.scorer.close())
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

    def _settle_in(self, prepared: Prepared, source: Source) -> int:
        version, self._next_version = self._next_version, self._next_version + 1
        self._sources[version] = source
        engine = build_engine(self._commons, prepared, version)
        for note in engine.loaded.identity.engine_notes:
            self._log.info("engine_note", version=version, engine=engine.loaded.identity.engine, note=note)
        for breach in engine.loaded.report.breaches:
            self._log.warning(
                "contract_broken", version=version, clause=breach.clause, message=breach.message, remedy=breach.remedy
            )
        self._tenures[version] = Tenure(engine, served_by(engine, self._commons), source, _now())
        return version

    def _shadow_of(self, engine: Engine, share: float) -> Shadow:
        metrics = self._commons.metrics

        def told(n: int, orders: Mapping[str, int]) -> None:
            if self._roster.shadow == engine.version:
                metrics.observe_shadow("compared", n, orders)
                metrics.shadow_is(engine.version, shadow.agreement.figures)

        background_scorer = BackgroundScorer(
            engine.encoder, engine.batcher, engine.pipeline, lambda n: metrics.observe_shadow("skipped", n, {})
        )
        shadow = Shadow(background_scorer, share, told)
        return shadow

    # -- handing over -----------------------------------------------------------------------------------------------

    def _change(self, roster: Roster) -> None:
        """Make it so. From the next request on the roster holds; nothing here waits."""
        for version in roster.surplus(self._keep):
            roster = roster.without(version)
        before, self._roster = self._roster, roster
        if roster.serving != before.serving:
            self._log.info(
                "model_serving", version=roster.serving, source=str(self.serving.source), before=before.serving
            )
        if roster.shadow != before.shadow:
            self._commons.metrics.shadow_gone()
        self._show()
        for version in [version for version in self._tenures if version not in roster.loaded]:
            task = asyncio.create_task(self._let_go(self._tenures.pop(version)), name="let go")
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)
            task.add_done_callback(logs.tell_of_death)

    def _show(self) -> None:
        """Tell the routes and the metrics."""
        roster, tenures = self._roster, self._tenures
        self._commons.monitor.baseline_source = self.serving.engine.watcher.baseline_source
        others = [tenures[version].served for version in roster.standby]
        self._stage.open(self.serving.served, others, roster.pins)
        self._commons.metrics.models_are(
            roster.serving,
            [{**tenures[version].engine.labels, "state": roster.state_of(version)} for version in roster.loaded],
        )
        shadow = None if roster.shadow is None else tenures[roster.shadow].shadow
        for version, tenure in tenures.items():
            tenure.engine.scoring.shadow = shadow if version == roster.serving else None

    async def _let_go(self, tenure: Tenure) -> None:
        """Free a model once nobody is inside any more."""
        version = tenure.engine.version
        await tenure.engine.scoring.idle.wait()
        await _stop(tenure)
        self._commons.metrics.model_gone(version)
        del tenure
        gc.collect()  # what counting references leaves behind; what was there at the start is spared
        await asyncio.to_thread(trim_heap)
        self._log.info("model_unloaded", version=version)

    def _described(self, version: int) -> Loaded:
        tenure, roster = self._tenures[version], self._roster
        credits = tenure.served.credits
        shadow = tenure.shadow if version == roster.shadow else None
        return Loaded(
            version=version,
            state=roster.state_of(version),
            source=str(tenure.source),
            name=tenure.engine.loaded.identity.name,
            contract=str(credits["contract"]),
            calibration=None if credits["calibration"] is None else str(credits["calibration"]),
            pipeline=str(credits["pipeline"]),
            loaded_at=tenure.loaded_at,
            requests_in_flight=tenure.engine.scoring.n_inside,
            pinned_runs=roster.pinned_to(version),
            shadow=None if shadow is None else shadow.comparison,
        )

    def _memory(self) -> tuple[int, int]:
        return self.serving.engine.loaded.memory()

    def _check_loaded(self, version: int) -> None:
        if version not in self._tenures:
            raise VersionGone("no model of this version is loaded; see GET /admin/models", version=version)


async def _stop(tenure: Tenure) -> None:
    if tenure.shadow is not None:
        await tenure.shadow.stop()
    await tenure.engine.stop()


def settings_for(source: Source, settings: ModelSettings) -> ModelSettings:
    """Those of the process, for another model. Raise `InvalidRequest`."""
    changed = settings.model_copy(update={"model": source.model, "ensemble": source.ensemble})
    try:
        changed.named_models()
    except ValueError as error:
        raise InvalidRequest(str(error), field="ensemble") from None
    return changed


def served_by(engine: Engine, commons: Commons) -> ServedModel:
    """What the routes may know of an engine."""
    return ServedModel(
        loaded=engine.loaded,
        scoring=engine.scoring,
        pipeline=engine.pipeline,
        version=engine.version,
        numeric_noise=engine.noise,
        batching=lambda: engine.batcher.limits,
        is_alive=lambda: engine.batcher.is_alive,
        scorer_state=lambda: engine.batcher.scorer_state,
        n_failed_batches=lambda: engine.batcher.n_failed_batches,
        monitor=commons.monitor,
        canaries=lambda: engine.canaries.latest,
    )


def spare_the_garbage_collector() -> None:
    """What is loaded by now stays, and what requests are made of is freed by counting references.

    By default the collector looks through every row of ids several times for cycles that are not there: a fifth of all
    CPU time of the server itself. Looking through what a model is made of stops everything for a moment.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_FEW_OBJECTS, *gc.get_threshold()[1:])


_FEW_OBJECTS = 50_000
"""More than what a house full of samples is made of, so that only what is left behind calls the garbage collector."""


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


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")

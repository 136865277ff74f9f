"""The composition root: the only file that knows every room. It builds them, opens them, and closes them.

The socket is up before the model is: `/livez` answers at once, `/readyz` when there is a model. A model
loads in a thread of its own that is never waited for, because nothing can interrupt it.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import uvicorn
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.types import ASGIApp

from model.backends import LoadedModel
from model.reward import Pipeline
from service.admission import Admission
from service.api import docs, problems
from service.api.dialects import DIALECTS
from service.api.dialects.routes import dialect_routes
from service.api.health import OPEN_PATHS, health_routes
from service.api.intake import Intake, IntakeLimits
from service.api.middleware import Access, KeyCheck, RequestSeen, Witness
from service.api.protocol import OneWriteProtocol
from service.api.routes import Straight, scoring_routes
from service.api.stage import Bounds, Served, Stage
from service.batching.noise import NumericNoise
from service.canaries import Canaries
from service.clock import Clock, MonotonicClock
from service.engine import FIRST_EPOCH, Engine, build_engine, hatch, load_audit, load_model, measure_noise
from service.keyring import KeyFile, KeyRing
from service.observability import logs
from service.observability.metrics import CONTENT_TYPE, Metrics
from service.settings import ServeSettings, is_loopback
from service.tls import Certificate
from service.webhook import Webhook

T = TypeVar("T")

_FEW_OBJECTS = 50_000
"""More than what a house full of samples is made of, so that only what is left behind calls the garbage collector."""

_LONGEST_CLOSING_S = 5.0
"""For answers that are being written when everything else is done."""


@dataclass(frozen=True, slots=True)
class House:
    """Everything that is there before the model is."""

    settings: ServeSettings
    stage: Stage
    admission: Admission
    metrics: Metrics
    clock: Clock
    log: logs.Logger
    app: ASGIApp


# -- building ---------------------------------------------------------------------------------------------------


def build_house(settings: ServeSettings, keys: KeyRing) -> House:
    """The HTTP side, complete but for the model. Needs a running event loop."""
    clock, metrics, stage = MonotonicClock(), Metrics(), Stage()
    log = logs.logger("api")
    admission = Admission(settings.admission.max_samples, settings.admission.max_tokens, clock)
    bounds = Bounds(
        settings.max_samples_per_request, settings.max_body_bytes, admission.max_samples, admission.max_tokens
    )
    api = FastAPI(
        title="RewardServe",
        version="0.1.0",
        description="Serve reward models to RLHF training.",
        redirect_slashes=False,
    )
    scoring = [
        scoring_routes(stage, bounds, clock),
        dialect_routes(DIALECTS, stage, bounds, clock, settings.overload_status),
    ]
    routers = [*scoring, health_routes(stage, bounds, metrics.render, CONTENT_TYPE)]
    for router in routers:
        api.include_router(router)
    docs.install(api, [dialect.body for dialect in DIALECTS])
    problems.install(api, settings.overload_status)
    own = {route.path for router in routers for route in router.routes if isinstance(route, APIRoute)}
    routes = frozenset(own | {"/docs", "/openapi.json"})
    intake = IntakeLimits(settings.max_body_bytes, settings.max_body_bytes_in_flight, settings.body_timeout_s)
    # From the innermost to the outermost.
    app: ASGIApp = Straight(api, routers=scoring, clock=clock, overload_status=settings.overload_status)
    key_file = KeyFile(settings.keys_file, keys, clock, _tell_of_keys(log, keys))
    access = Access(OPEN_PATHS, settings.metrics_key_required, is_loopback(settings.host))
    app = KeyCheck(app, ring=key_file.ring, access=access, clock=clock)
    app = Intake(app, limits=intake)
    app = Witness(app, routes=routes, clock=clock, tell=_tell_of_requests(metrics, log))
    return House(settings, stage, admission, metrics, clock, log, app)


def _tell_of_keys(log: logs.Logger, keys: KeyRing) -> Callable[[Sequence[str], str | None], None]:
    def tell(names: Sequence[str], why: str | None) -> None:
        if why is None:
            log.info("keys_read", keys=names)
        else:
            log.error("keys_file_is_broken", why=why, kept=names)

    for warning in keys.warnings():
        log.warning("keys", warning=warning)
    return tell


def _tell_of_certificates(log: logs.Logger) -> Callable[[str | None], None]:
    def tell(why: str | None) -> None:
        if why is None:
            log.info("certificate_read")
        else:
            log.error("certificate_is_broken", why=why)

    return tell


def _tell_of_requests(metrics: Metrics, log: logs.Logger) -> Callable[[RequestSeen], None]:
    def tell(seen: RequestSeen) -> None:
        metrics.observe_request(seen.route, seen.status, seen.seconds)
        facts = {k: v for k, v in seen.facts.items() if v is not None}
        line = {"request_id": seen.request_id, "method": seen.method, "route": seen.route, "status": seen.status,
                "ms": round(1000 * seen.seconds, 3), **facts}  # fmt: skip
        if seen.bug is not None:
            log.error("request_bug", **line, exc_info=seen.bug)
        elif seen.route in OPEN_PATHS:
            log.debug("request", **line)  # an orchestrator asks every few seconds
        else:
            log.info("request", **line)

    return tell


# -- running ----------------------------------------------------------------------------------------------------


class _Uvicorn(uvicorn.Server):
    """Leaves signals to `serve`: uvicorn alone stops listening before it drains, and dies of the signal."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def serve(
    settings: ServeSettings,
    keys: KeyRing,
    listening: socket.socket,
    say: Callable[[str], None],
    webhook_secret: bytes | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then finish what was accepted. Raise `LoadError` or `PipelineError`.

    `say` is told what is served once it is ready. Raise `TimeoutError` when accepted work was not finished
    within the drain timeout.
    """
    house = build_house(settings, keys)
    webhook = _start_webhook(settings, webhook_secret, house.metrics)
    stop = _stop_event()
    asyncio.get_running_loop().set_exception_handler(_tell_of_stray_exceptions(house.log))
    config = uvicorn.Config(
        house.app,
        http=OneWriteProtocol,
        log_config=None,
        access_log=False,
        ws="none",
        server_header=False,
        proxy_headers=False,
        lifespan="off",
    )
    if (files := settings.tls_files()) is not None:
        config.load()
        config.ssl = Certificate(files, house.clock, _tell_of_certificates(house.log)).context
    server = _Uvicorn(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        engine = await _load_unless_stopped(house, stop, webhook)
        if engine is not None:
            say(_in_words(engine.loaded))
            await _unless_dead(stop, serving)
            await _drain(house, engine)
    finally:
        if webhook is not None:
            await webhook.stop()
        server.should_exit = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(serving, _LONGEST_CLOSING_S)


def _start_webhook(settings: ServeSettings, secret: bytes | None, metrics: Metrics) -> Webhook | None:
    if not settings.webhook_url:
        return None
    log = logs.logger("webhook")

    def lost(alarm: Mapping[str, Any], why: str) -> None:
        metrics.observe_alarm_lost()
        log.error("alarm_not_delivered", run=alarm["run"], wire=alarm["wire"], why=why)

    webhook = Webhook(settings.webhook_url, secret, lost)
    webhook.start()
    return webhook


async def _load_unless_stopped(house: House, stop: asyncio.Event, webhook: Webhook | None) -> Engine | None:
    """The rooms around the loaded model, or None when the process was told to stop first."""

    def load_and_measure() -> tuple[LoadedModel, Pipeline, NumericNoise | None, LoadedModel | None, Canaries]:
        loaded, pipeline = load_model(house.settings)
        noise = measure_noise(house.settings, loaded)
        return loaded, pipeline, noise, load_audit(house.settings), hatch(house.settings, loaded, noise)

    loading = _in_daemon_thread(load_and_measure, "loader")
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((loading, stopped), return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            house.stage.close()
            return None
        loaded, pipeline, noise, audit, canaries = loading.result()
    finally:
        stopped.cancel()
    engine = build_engine(
        house.settings, loaded, pipeline, house.admission, house.metrics, house.clock, webhook, audit, canaries
    )
    spare_the_garbage_collector()
    for note in loaded.identity.engine_notes:
        house.log.info("engine_note", engine=loaded.identity.engine, note=note)
    for breach in loaded.report.breaches:
        house.log.warning("contract_broken", clause=breach.clause, message=breach.message, remedy=breach.remedy)
    house.stage.open(
        Served(
            loaded=loaded,
            scoring=engine.scoring,
            pipeline=pipeline,
            epoch=FIRST_EPOCH,
            numeric_noise=noise,
            batching=lambda: engine.batcher.limits,
            is_alive=lambda: engine.batcher.is_alive,
            n_failing=lambda: engine.batcher.n_failing,
            board=engine.watch.board,
            canaries=lambda: engine.canaries.latest,
        )
    )
    return engine


def spare_the_garbage_collector() -> None:
    """What is loaded by now stays, and what requests are made of is freed by counting references.

    By default the collector looks through every row of ids several times for cycles that are not there: a fifth of all
    CPU time of the server itself. Looking through what a model is made of stops everything for a moment.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_FEW_OBJECTS, *gc.get_threshold()[1:])


async def _drain(house: House, engine: Engine) -> None:
    """Refuse new work, answer everything accepted. The socket stays open, so that a refusal can be read."""
    house.stage.close()
    house.admission.close()
    house.log.info("draining", samples=house.admission.n_samples)
    try:
        async with asyncio.timeout(house.settings.drain_timeout_s):
            await house.admission.empty.wait()
            await engine.stop()
    except TimeoutError:
        house.log.error("drain_timeout", samples=house.admission.n_samples, seconds=house.settings.drain_timeout_s)
        await engine.batcher.give_up()
        raise


async def _unless_dead(stop: asyncio.Event, serving: asyncio.Task[Any]) -> None:
    """Wait for the signal, or for the end of a server that ended by itself."""
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((stopped, serving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()


def _stop_event() -> asyncio.Event:
    """Set by the first SIGTERM or SIGINT; a second SIGINT ends the process at once."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(130)
        stop.set()

    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, on_signal)
    return stop


def _tell_of_stray_exceptions(log: logs.Logger) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """asyncio would print the exception, words and all; they may quote a conversation."""

    def tell(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        log.error("stray_exception", exc_info=context.get("exception"))

    return tell


def _in_daemon_thread(work: Callable[[], T], name: str) -> asyncio.Future[T]:
    """The future result of `work`. Unlike with an executor, the process may end while it runs."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.cancelled():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # T may itself be None

    def run() -> None:
        try:
            result, error = work(), None
        except BaseException as raised:
            result, error = None, raised
        with contextlib.suppress(RuntimeError):  # the loop may be closed by now
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def _in_words(loaded: LoadedModel) -> str:
    """What is served; in half precision, also what that costs in score."""
    identity, error = loaded.identity, loaded.report.max_probe_error
    where = f"{identity.backend} on {identity.device}, {identity.dtype}"
    if identity.dtype in ("bfloat16", "float16") and error is not None:
        where += f", scores off by up to {error:.1e} on the contract's probes"
    return f"{identity.name} ({identity.architecture}, {where}; POST /score, docs at /docs)"

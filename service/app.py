"""Create, start and stop the parts of the server. The composition root: the only module that knows all of them.

The socket listens before the model is loaded: `/livez` answers at once, `/readyz` when there is a model. A model
loads in a daemon thread that is never joined, because a load cannot be interrupted.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import uvicorn
from fastapi import Depends, FastAPI
from fastapi.routing import APIRoute
from pydantic_settings import SettingsError
from starlette.routing import Route
from starlette.types import ASGIApp

from rewardserve import __version__
from rewardserve.service.admission import Admission
from rewardserve.service.api import error_responses, openapi
from rewardserve.service.api.dialects import DIALECTS, pairs
from rewardserve.service.api.dialects.routes import DialectEndpoint, DialectPolicy, dialect_routes
from rewardserve.service.api.events import ConnectionEnd, RequestRecord
from rewardserve.service.api.http.load_shedder import LoadShedder
from rewardserve.service.api.http.protocol import ConnectionLimits, Connections, HttpProtocol
from rewardserve.service.api.middleware.auth import AuthMiddleware
from rewardserve.service.api.middleware.body_limits import BodyLimitMiddleware, BodyLimits
from rewardserve.service.api.middleware.fast_router import FastRouter
from rewardserve.service.api.middleware.host_policy import HostPolicy
from rewardserve.service.api.middleware.request_log import RequestLogMiddleware
from rewardserve.service.api.route_policy import OPEN_PATHS, RoutePolicy, check_same_route
from rewardserve.service.api.routes.admin import admin_routes
from rewardserve.service.api.routes.approvals import approval_routes
from rewardserve.service.api.routes.attribution import attribution_routes
from rewardserve.service.api.routes.health import health_routes
from rewardserve.service.api.routes.kserve_health import kserve_health_routes
from rewardserve.service.api.routes.labels import label_routes
from rewardserve.service.api.routes.model import model_routes
from rewardserve.service.api.routes.pages import page_routes
from rewardserve.service.api.routes.review import review_routes
from rewardserve.service.api.routes.review_access import Review
from rewardserve.service.api.routes.scoring import scoring_routes
from rewardserve.service.api.routes.tripwires import tripwire_routes
from rewardserve.service.api.server_limits import ServerLimits
from rewardserve.service.auth.api_keys import ApiKeys, ApiKeysFile
from rewardserve.service.auth.tls import ReloadingCertificate
from rewardserve.service.clock import Clock, MonotonicClock
from rewardserve.service.console.parts import Console
from rewardserve.service.console.routes import console_routes
from rewardserve.service.console.session import Sessions, read_secret
from rewardserve.service.models.active_models import ActiveModels
from rewardserve.service.models.audit_judge import LoadedJudge, load_named_judge
from rewardserve.service.models.checkpoint_watcher import CheckpointFiles, Fingerprint, fingerprint
from rewardserve.service.models.deployment import Source
from rewardserve.service.models.loading import PreparedModel, prepare_model
from rewardserve.service.models.registry import ModelRegistry, in_daemon_thread, tune_garbage_collector
from rewardserve.service.models.runtime import ModelRuntime
from rewardserve.service.models.shared_resources import Capture, create_shared_resources
from rewardserve.service.models.snapshots import SnapshotPins
from rewardserve.service.observability import logs
from rewardserve.service.observability.capture_report import CaptureReport
from rewardserve.service.observability.metrics import Metrics
from rewardserve.service.observability.tripwire_report import TripwireReport
from rewardserve.service.review.errors import ReviewStoreError
from rewardserve.service.review.policy import CapturePolicy
from rewardserve.service.review.writer import CaptureWriter, Retention
from rewardserve.service.settings import ServeSettings, is_loopback
from rewardserve.service.storage.slots import claimed_slot
from rewardserve.service.storage.watched_files import watching
from rewardserve.service.tripwires.io.webhook import Webhook

_MAX_CONNECTIONS = 8192
"""About 100 MB of buffers and objects if all connections are busy."""

_MAX_CLOSING_S = 5.0
"""Time for the last responses to be written, after everything else has stopped."""


@dataclass(frozen=True, slots=True)
class Application:
    """The parts of the server that exist before the model is loaded."""

    settings: ServeSettings
    active_models: ActiveModels
    admission: Admission
    metrics: Metrics
    clock: Clock
    log: logs.Logger
    events: _ServerEvents
    app: ASGIApp
    load_shedder: LoadShedder
    key_file: ApiKeysFile | None
    review: Review | None
    snapshots: SnapshotPins


# -- building ---------------------------------------------------------------------------------------------------


def create_app(settings: ServeSettings, keys: ApiKeys) -> Application:
    """Create the HTTP side of the server, without a model. Needs a running event loop."""
    clock, metrics, active_models = MonotonicClock(), Metrics(), ActiveModels()
    log = logs.logger("api").bind()  # an unbound logger is bound again at every line
    events = _ServerEvents(metrics, log)
    admission = Admission(settings.admission.max_samples, settings.admission.max_tokens, clock)
    server_limits = ServerLimits(
        settings.max_samples_per_request, settings.max_body_bytes, admission.max_samples, admission.max_tokens
    )
    api = FastAPI(
        title="RewardServe",
        version=__version__,
        description="Serve reward models to RLHF training.",
        redirect_slashes=False,
        dependencies=[Depends(check_same_route)],
        docs_url=None,
        redoc_url=None,
    )
    aliases, review = settings.aliases(), _create_review(settings, clock, metrics)
    key_file = None if settings.keys_file is None else ApiKeysFile(settings.keys_file, keys, events)
    policy = DialectPolicy(settings.overload_status, aliases, {"on_failure": settings.verify_on_failure})
    snapshots = SnapshotPins(active_models, events)
    scoring = [
        approval_routes(active_models, snapshots, server_limits, clock),
        scoring_routes(
            active_models,
            server_limits,
            clock,
            DialectEndpoint(pairs.SCORE, active_models, server_limits, clock, policy),
        ),
        dialect_routes(DIALECTS, active_models, server_limits, clock, policy),
    ]
    routers = [
        *scoring,
        kserve_health_routes(active_models, aliases),
        health_routes(active_models, metrics, aliases),
        model_routes(active_models, server_limits, settings.capture),
        attribution_routes(active_models),
        tripwire_routes(active_models, clock),
        admin_routes(active_models),
        review_routes(review, active_models),
        label_routes(review, clock),
        page_routes(api.title),
        console_routes(
            Console(
                active_models,
                review,
                Sessions(
                    read_secret(settings.tripwires.state_dir), key_file or keys, is_local=is_loopback(settings.host)
                ),
                clock,
                __version__,
                clock.now(),
            )
        ),
    ]
    for router in routers:
        api.include_router(router)
    openapi.install_openapi(api, OPEN_PATHS)
    methods: dict[str, set[str]] = {}
    for route in [route for router in routers for route in router.routes if isinstance(route, APIRoute)]:
        methods.setdefault(route.path_format, set()).update(route.methods or ())
    for of_path in methods.values():
        of_path.update({"HEAD"} if "GET" in of_path else ())
    error_responses.install_error_handlers(api, settings.overload_status, methods)
    metrics.set_scoring_routes(
        route.path_format for router in scoring for route in router.routes if isinstance(route, APIRoute)
    )
    body_limits = BodyLimits(settings.max_body_bytes, settings.max_body_bytes_in_flight, settings.body_timeout_s)
    # Other dialects wait for capacity, or render errors in another format.
    without_queue_timeout = {
        d.path for d in DIALECTS if not d.queue_timeout_s and d.render_error is error_responses.request_error_response
    }
    sheddable = {"/score", "/compare", "/approvals"} | without_queue_timeout
    load_shedder = LoadShedder(frozenset(sheddable), admission, events)
    # From the innermost to the outermost.
    app: ASGIApp = FastRouter(
        api,
        routers=scoring,
        clock=clock,
        overload_status=settings.overload_status,
        load_shedder=load_shedder,
        blocked_runs=active_models,
    )
    for warning in keys.warnings():
        log.warning("keys", warning=warning)
    app = AuthMiddleware(
        app,
        api_keys=key_file or keys,
        is_loopback=is_loopback(settings.host),
        host_policy=_host_policy(settings),
        clock=clock,
    )
    app = BodyLimitMiddleware(app, limits=body_limits)
    declared = [route for router in routers for route in router.routes]
    route_policy = RoutePolicy(
        [*declared, *(route for route in api.routes if type(route) is Route)], settings.metrics_key_required
    )
    app = RequestLogMiddleware(app, route_policy=route_policy, clock=clock, events=events)
    return Application(
        settings, active_models, admission, metrics, clock, log, events, app, load_shedder, key_file, review, snapshots
    )


def _create_review(settings: ServeSettings, clock: Clock, metrics: Metrics) -> Review | None:
    """The review store, which is opened when its writer starts; None: there is none. Raise `SettingsError`."""
    database = settings.review_database()
    if database is None:
        return None
    # Its libraries take half a second to import: a server without a store does without them.
    from rewardserve.service.review.store import ReviewStore

    try:
        store = ReviewStore(database)
    except ReviewStoreError as error:
        raise SettingsError(f"REWARD_REVIEW__DATABASE: {error}.") from None
    retention = Retention(settings.review.max_age_days * 86_400.0, settings.review.max_mib * 2**20)
    return Review(store, CaptureWriter(store, retention, clock, CaptureReport(metrics)), settings.capture)


def _host_policy(settings: ServeSettings) -> HostPolicy:
    # With `allow_unauthenticated` the socket may belong to another process, as with Ray, and `host` does not describe it.
    is_local = is_loopback(settings.host) and not settings.allow_unauthenticated
    bound_host = () if is_loopback(settings.host) else (settings.host,)
    return HostPolicy(is_loopback=is_local, hosts=(*bound_host, *settings.hosts()), origins=settings.origins())


@dataclass(frozen=True, slots=True)
class _ServerEvents:
    """Count and log the events of connections, requests, keys, certificates and watched files."""

    metrics: Metrics
    log: logs.Logger

    def on_request(self, record: RequestRecord) -> None:
        self.metrics.observe_request(record.route, record.status, record.seconds)
        fields = {k: v for k, v in record.fields.items() if v is not None}
        line = {"request_id": record.request_id, "method": record.method, "route": record.route, "status": record.status,
                "ms": round(1000 * record.seconds, 3), **fields}  # fmt: skip
        if record.bug is not None:
            self.log.error("request_bug", **line, exc_info=record.bug)
        elif record.route in OPEN_PATHS:
            self.log.debug("request", **line)  # an orchestrator sends one every few seconds
        else:
            self.log.info("request", **line)

    def on_rejected(self, path: str, status: int) -> None:
        self.metrics.observe_request(path, status, 0.0)

    def on_connection_end(self, reason: ConnectionEnd) -> None:
        self.metrics.observe_connection_ended(reason)

    def on_keys_read(self, names: Sequence[str], problem: str | None) -> None:
        if problem is None:
            self.log.info("keys_read", keys=names)
        else:
            self.log.error("api_keys_reload_failed", reason=problem, valid=names)

    def on_certificate_read(self, problem: str | None) -> None:
        if problem is None:
            self.log.info("certificate_read")
        else:
            self.log.error("tls_reload_failed", reason=problem)

    def on_pinned(self, run: str, version: int, snapshot: str) -> None:
        self.log.info("approvals_pinned", run=run, version=version, snapshot=snapshot)

    def on_not_saved(self, error: Exception) -> None:
        reason = error.strerror if isinstance(error, OSError) else None
        self.log.error("approvals_not_kept", reason=reason or str(error))

    def on_poll_failed(self, name: str, error: Exception) -> None:
        self.log.error("file_watch_failed", file=name, exc_info=error)


# -- running ----------------------------------------------------------------------------------------------------


class _UvicornServer(uvicorn.Server):
    """uvicorn's server, with signals left to `serve`: uvicorn stops listening before it drains, and ends by the signal."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def protocol(self) -> asyncio.Protocol:
        """Create the protocol of one more connection."""
        config = self.config
        return config.http_protocol_class(config=config, server_state=self.server_state, app_state={})  # type: ignore[call-arg]

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept and serve the connections in the backlog, then end: the kernel would reset them with the socket."""
        for listener, sock in zip(self.servers, sockets or [], strict=True):
            await self.stop_listening(listener, sock)
        await super().shutdown(sockets)

    async def stop_listening(self, listener: asyncio.Server, sock: socket.socket) -> None:
        """Close a listening socket after accepting all connections in its backlog."""
        with sock.dup() as still_open:
            still_open.setblocking(False)
            listener.close()
            waiting = _accept_all(still_open, self.config.backlog)
        accepted = [
            asyncio.get_running_loop().connect_accepted_socket(self.protocol, each, ssl=self.config.ssl)
            for each in waiting
        ]
        await asyncio.gather(*accepted, return_exceptions=True)  # some clients have disconnected by now


def _accept_all(listening: socket.socket, most: int) -> list[socket.socket]:
    accepted: list[socket.socket] = []
    with contextlib.suppress(OSError):  # the backlog is empty, or no file descriptor is left
        while len(accepted) < most:
            connection, _ = listening.accept()
            connection.setblocking(False)
            accepted.append(connection)
    return accepted


async def serve(
    settings: ServeSettings,
    keys: ApiKeys,
    listening: socket.socket,
    on_ready: Callable[[str], None],
    webhook_secrets: Sequence[str] = (),
    shared: socket.socket | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then finish the accepted requests. Raise `LoadError` or `PipelineError`.

    `shared` is bound to a port that replicas share, and listens only while there is a model.
    `on_ready` is called once, with a description of the model. Raise `TimeoutError` if accepted requests are not finished
    within the drain timeout.
    """
    application = create_app(settings, keys)
    stop = _stop_event()
    asyncio.get_running_loop().set_exception_handler(_log_unhandled_exceptions(application.log))
    config = uvicorn.Config(
        application.app,
        http=cast(
            Any,
            partial(
                HttpProtocol,
                shared=Connections(_limits(settings), application.events, application.load_shedder),
            ),
        ),
        ws="none",
        timeout_keep_alive=cast(int, settings.keep_alive_s),  # a fraction of a second is fine
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        lifespan="off",
    )
    certificate = None
    if (files := settings.tls_files()) is not None:
        config.load()
        certificate = ReloadingCertificate(files, application.events)
        config.ssl = certificate.context
    server = _UvicornServer(config)
    serving = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        async with _background_work(application, webhook_secrets, certificate) as (webhook, folder):
            known = fingerprint(settings.watched_folders())
            registry = await _load_unless_stopped(application, stop, webhook, folder)
            if registry is not None:
                on_ready(_describe(registry.serving))
                with _reloading_model(application, registry, known):
                    async with _listening_on_shared_port(shared, server):
                        await _wait_for_stop(stop, serving)
                await _drain(application, registry)
    finally:
        server.should_exit = True
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(serving, _MAX_CLOSING_S)


@contextlib.asynccontextmanager
async def running_app(
    settings: ServeSettings, keys: ApiKeys, webhook_secrets: Sequence[str] = ()
) -> AsyncIterator[tuple[Application, ModelRegistry]]:
    """Run the application with its model, for a host process that owns the socket and handles signals.

    Leaving the block waits for the accepted requests. Raises the exceptions of `serve`.
    """
    application = create_app(settings, keys)
    async with _background_work(application, webhook_secrets) as (webhook, folder):
        registry = await _load_unless_stopped(application, asyncio.Event(), webhook, folder)
        assert registry is not None, "no stop was requested"
        try:
            yield application, registry
        finally:
            await _drain(application, registry)


def _limits(settings: ServeSettings) -> ConnectionLimits:
    """The limits of connections; a quarter of the file descriptors is left for everything else."""
    descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    n = settings.max_connections or min(_MAX_CONNECTIONS, max(1, descriptors * 3 // 4))
    return ConnectionLimits(n, settings.head_timeout_s, settings.body_timeout_s)


@contextlib.asynccontextmanager
async def _background_work(
    application: Application, webhook_secrets: Sequence[str], certificate: ReloadingCertificate | None = None
) -> AsyncIterator[tuple[Webhook | None, Path | None]]:
    """While the body runs, watch the files of keys and certificate, and deliver alerts. Yield the webhook if there is one, and the
    folder of the state of this process if there is one.
    """
    settings, webhook = application.settings, None
    with _state_folder(application) as folder:
        if folder is not None:
            application.snapshots.restore(folder)
        if settings.webhook_url:
            events = TripwireReport(application.metrics)
            webhook = Webhook(settings.webhook_url, webhook_secrets, application.clock, events, folder=folder)
            webhook.start()
        if application.review is not None:
            application.log.warning("capture", policy=settings.capture, store=application.review.store.name)
            application.review.writer.start()
        try:
            with watching(
                [file for file in (application.key_file, certificate) if file is not None], application.events
            ):
                yield webhook, folder
        finally:
            if application.review is not None:
                await asyncio.to_thread(application.review.writer.stop)
            if webhook is not None:
                await webhook.stop()


@contextlib.contextmanager
def _state_folder(application: Application) -> Iterator[Path | None]:
    """While the body runs, claim a subfolder of the state folder: replicas on one machine may share it."""
    shared = application.settings.tripwires.state_dir
    if shared is None:
        yield None
        return
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(claimed_slot(shared))
        except OSError as error:
            application.log.error("state_folder_unusable", reason=error.strerror or str(error))
            yield None
            return
        yield folder


async def _load_unless_stopped(
    application: Application, stop: asyncio.Event, webhook: Webhook | None, state_folder: Path | None
) -> ModelRegistry | None:
    """Load the first model and put it into service. Return None if a stop was requested first."""
    settings = application.settings

    def load() -> tuple[PreparedModel, LoadedJudge | None]:
        return prepare_model(settings), load_named_judge(settings)

    loading = in_daemon_thread(load, "loader")
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((loading, stopped), return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            application.active_models.close()
            return None
        prepared, audit = loading.result()
    finally:
        stopped.cancel()
    resources = create_shared_resources(
        settings,
        application.admission,
        application.metrics,
        application.clock,
        webhook,
        audit,
        settings.scorer_timeout_s,
        state_folder,
        prepared.audit,
        _capture(application),
    )
    source = Source(settings.model, settings.ensemble)
    registry = ModelRegistry(
        resources, application.active_models, prepared, source, settings.swap.keep, settings.swap.load_timeout_s
    )
    application.active_models.attach_admin(registry)
    tune_garbage_collector()
    return registry


def _capture(application: Application) -> Capture | None:
    policy = CapturePolicy.parse(application.settings.capture)
    return Capture(policy, application.review.writer) if application.review is not None and policy.is_on else None


async def _drain(application: Application, registry: ModelRegistry) -> None:
    """Refuse new requests and answer all accepted ones. The socket stays open, so that clients can read a refusal."""
    application.active_models.close()
    application.admission.close()
    application.log.info("draining", samples=application.admission.n_samples)
    try:
        async with asyncio.timeout(application.settings.drain_timeout_s):
            await application.admission.idle.wait()
            await registry.close()
    except TimeoutError:
        application.log.error(
            "drain_timeout", samples=application.admission.n_samples, seconds=application.settings.drain_timeout_s
        )
        await registry.abort()
        raise


class _ModelReloads:
    """Load the model of the settings again, on SIGHUP and for a new checkpoint. Belongs to the event loop that creates it."""

    def __init__(self, registry: ModelRegistry, log: logs.Logger) -> None:
        self._registry = registry
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> asyncio.Task[None]:
        """Start to load the model, after a load in progress."""
        task = self._loop.create_task(self._registry.load_again(), name="load again")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def on_signal(self) -> None:
        """Load the model."""
        self.start().add_done_callback(logs.log_task_exception)

    def on_new_checkpoint(self) -> None:
        """Load the model, and wait for it. On the thread that polls the files, which goes on with the next poll afterwards."""

        async def load() -> None:
            await self.start()

        asyncio.run_coroutine_threadsafe(load(), self._loop).result()

    def on_unstable(self) -> None:
        """Log why a new checkpoint is not loaded."""
        self._log.warning(
            "checkpoint_never_still",
            reason="the checkpoint changes at every poll, so it is not loaded. Write it to another folder, then move a link to it.",
        )

    def cancel(self) -> None:
        """Cancel the loads that wait or are in progress."""
        for task in self._tasks:
            task.cancel()


@contextlib.contextmanager
def _reloading_model(application: Application, registry: ModelRegistry, known: Fingerprint) -> Iterator[None]:
    """While the body runs, load the model again on SIGHUP and when the checkpoint of the model changes."""
    settings, reloads = application.settings, _ModelReloads(registry, application.log)
    asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloads.on_signal)
    every_s = settings.swap.watch_s
    files = [CheckpointFiles(settings.watched_folders(), known, every_s, reloads)] if every_s else []
    try:
        with watching(files, application.events):
            yield
    finally:
        reloads.cancel()


@contextlib.asynccontextmanager
async def _listening_on_shared_port(shared: socket.socket | None, server: _UvicornServer) -> AsyncIterator[None]:
    """While the body runs, also accept connections to the port that the replicas of one machine share.

    A replica that loads or drains does not listen there, so the kernel gives it no new connections. Open connections stay.
    """
    if shared is None:
        yield
        return
    listener = await asyncio.get_running_loop().create_server(server.protocol, sock=shared, ssl=server.config.ssl)
    try:
        yield
    finally:
        await server.stop_listening(listener, shared)


async def _wait_for_stop(stop: asyncio.Event, serving: asyncio.Task[Any]) -> None:
    """Wait for the signal, or for the server to end by itself."""
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((stopped, serving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopped.cancel()


def _stop_event() -> asyncio.Event:
    """An event that the first SIGTERM or SIGINT sets; a second SIGINT ends the process at once."""
    stop, loop = asyncio.Event(), asyncio.get_running_loop()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(130)
        stop.set()

    loop.add_signal_handler(signal.SIGTERM, stop.set)
    loop.add_signal_handler(signal.SIGINT, on_signal)
    return stop


def _log_unhandled_exceptions(log: logs.Logger) -> Callable[[asyncio.AbstractEventLoop, dict[str, Any]], None]:
    """An exception handler for the event loop: asyncio would print the message, which may quote a conversation."""

    def handle(_loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        log.error("unhandled_exception", exc_info=context.get("exception"))

    return handle


def _listed(names: Sequence[str]) -> str:
    return f"{len(names)} ({', '.join(names)})" if names else "none"


def _describe(runtime: ModelRuntime) -> str:
    """Describe the model in one line: in half precision with the error of its scores, and with the failing canaries."""
    loaded = runtime.loaded
    identity, error = loaded.identity, loaded.report.max_probe_error
    details = f"{identity.backend} on {identity.device}, {identity.dtype}"
    if identity.dtype in ("bfloat16", "float16") and error is not None:
        details += f", scores off by up to {error:.1e} on the golden probes"
    if failing := runtime.canaries.failing:
        names = ", ".join(each.name for each in failing)
        details += (
            f"; {len(failing)} of {len(runtime.canaries.first)} canaries fail, the exploit scores higher: {names}"
        )
        if (uncovered := runtime.uncovered_canaries) is not None:
            details += f"; the audit judge fails in {_listed(uncovered)} of these"
    return f"{identity.name} ({identity.architecture}, {details}; POST /score, docs at /docs)"

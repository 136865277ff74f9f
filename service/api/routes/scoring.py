"""`POST /score` and `POST /compare`: read, ask `scoring`, answer. No decision about scores is made here.

FastAPI documents these routes. `Straight` calls them without its dispatch: they need nothing of dependencies or
response models, and what those cost every request would be a tenth of the whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from typing import Any, TypeVar

import msgspec
from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from rewardserve.service.api import body, openapi, run_context, structs
from rewardserve.service.api.deadline import read_deadline
from rewardserve.service.api.error_responses import refusal
from rewardserve.service.api.headers import header
from rewardserve.service.api.http.load_shedder import Door
from rewardserve.service.api.middleware.idempotency import Idempotency
from rewardserve.service.api.replies import compare_reply, score_reply
from rewardserve.service.api.route_policy import Known
from rewardserve.service.api.schemas import (
    CompareReply,
    CompareRequest,
    ComparisonIn,
    SampleIn,
    ScoreReply,
    ScoreRequest,
    to_comparison,
    to_sample,
)
from rewardserve.service.clock import Clock
from rewardserve.service.errors import CallerLeft, InvalidRequest, Overloaded, RequestRefused, TooManySamples
from rewardserve.service.models.active_models import Bounds, Stage
from rewardserve.service.scoring import Compared, Scored
from rewardserve.service.tripwires.io.run_watcher import Origin

T = TypeVar("T")
Endpoint = Callable[[Request], Awaitable[Response]]

_UNWATCHED_S = 0.05
"""An answer that is there so soon is written to a caller who may just have hung up; a longer one is watched over."""

_scores = msgspec.json.Decoder(structs.ScoreRequest)
_comparisons = msgspec.json.Decoder(structs.CompareRequest)


def scoring_routes(
    stage: Stage,
    bounds: Bounds,
    clock: Clock,
    has_pairs: Callable[[Any], bool],
    score_pairs: Callable[[Request, Any], Awaitable[Response]],
    pair_bodies: Sequence[Any] = (),
) -> APIRouter:
    """The routes that score. Where the JSON of a body `has_pairs` it is another server's: `score_pairs` answers it.

    `pair_bodies` are the records of such bodies, for the documentation.
    """
    router = APIRouter(tags=["scoring"])
    parts = body.Parts.of(bounds.max_samples_per_request, bounds.admission_max_tokens)

    @router.post(
        "/score", response_model=ScoreReply | openapi.ForeignReply, **openapi.operation(ScoreRequest, pair_bodies)
    )
    async def score(request: Request) -> Response:
        """Score samples. A bad sample gets `null` and an error of its own; its neighbours are scored."""
        deadline = read_deadline(request, clock)
        stage.served()  # refused before a body is read that nobody could answer
        said = run_context.read(request.scope, {"value"})
        try:
            asked = await body.read(request, _scores, ScoreRequest, parts, has_pairs)
        except body.NotOurs as theirs:
            return await score_pairs(request, theirs.value)
        if said.options:
            raise InvalidRequest("value is for other wire formats: the results here have all numbers", field="value")
        bound(len(asked.samples), bounds, "samples")
        ids = _ids(asked.samples)
        run, step = run_context.one("run", asked.run or None, said.run), run_context.one("step", asked.step, said.step)
        whence = run_context.of(request.scope, run, step, asked.kl, [s.id for s in asked.samples])
        served = stage.served_for(whence.run, said.model_digests)
        note(request, run=whence.run, step=step, samples=len(asked.samples), version=served.version)
        work = served.scoring.score([to_sample(s) for s in asked.samples], deadline, whence)
        results = await while_connected(request, work)
        note_failures(request, results)
        return score_reply(served, ids, results)

    @router.post("/compare", response_model=CompareReply, **openapi.operation(CompareRequest))
    async def compare(request: Request) -> Response:
        """Rank responses to one prompt. The order in which they are listed has no effect."""
        deadline = read_deadline(request, clock)
        stage.served()
        said = run_context.read(request.scope)
        asked = await body.read(request, _comparisons, CompareRequest, parts)
        n_responses = sum(len(c.responses) for c in asked.comparisons)
        bound(n_responses, bounds, "responses")
        ids = _ids(asked.comparisons)
        run, step = run_context.one("run", asked.run or None, said.run), run_context.one("step", asked.step, said.step)
        whence = run_context.of(request.scope, run, step)
        served = stage.served_for(whence.run, said.model_digests)
        note(request, run=whence.run, step=whence.step, samples=n_responses, version=served.version)
        work = served.scoring.compare([to_comparison(c) for c in asked.comparisons], asked.tie_margin, deadline, whence)
        results = await while_connected(request, work)
        note_failures(request, results)
        return compare_reply(served, ids, results)

    return router


class _Request(Request):
    """A request whose body is read without a generator."""

    _content: bytes | None = None

    async def body(self) -> bytes:
        """As there; `Intake` raises where the client has left."""
        if self._content is None:
            message = await self.receive()
            content: bytes = message.get("body", b"")
            if message.get("more_body", False):
                parts = [content]
                while message.get("more_body", False):
                    message = await self.receive()
                    parts.append(message.get("body", b""))
                content = b"".join(parts)
            self._content = content
        return self._content


class Straight:
    """Answers POST on these routes itself; everything else, a wrong method on them included, is the framework's."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        routers: Sequence[APIRouter],
        clock: Clock,
        overload_status: int,
        door: Door,
        is_blocked: Callable[[Origin], bool] = lambda _: False,
    ) -> None:
        self._app = app
        routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
        self._endpoints: dict[str, Endpoint] = {route.path_format: route.endpoint for route in routes}
        self._overload_status = overload_status
        self._door = door
        self._idempotency = Idempotency(clock, is_blocked=is_blocked)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        known: Known | None = scope["state"]["route"] if scope["type"] == "http" else None
        endpoint = None if known is None else self._endpoints.get(known.path)
        if known is None or endpoint is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if known.pattern is not None:
            scope["path_params"] = known.parameters(scope)
        try:
            response = await self._idempotency.once(_Request(scope, receive), endpoint)
        except RequestRefused as error:
            response = refusal(error, self._overload_status)
            if isinstance(error, Overloaded):
                self._door.found_no_seat(int(header(scope, b"content-length") or 0), response)
        await response(scope, receive, send)


def note(request: Request, **facts: Any) -> None:
    """Facts for the line that this request leaves in the access log."""
    request.scope["state"]["facts"] = facts


def note_failures(request: Request, results: Iterable[Scored | Compared]) -> None:
    """Whether the reply may be given again to the same idempotency key: all its failures are final."""
    request.scope["state"]["is_final"] = all(r.failure is None or r.failure.is_final for r in results)


async def while_connected(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of `work`. Raise `CallerLeft`, and do no work further, once the caller has hung up."""
    task = asyncio.current_task()
    assert task is not None
    n_cancelled = task.cancelling()
    watch = _Watch(request, task)
    try:
        return await work
    except asyncio.CancelledError:
        # As in asyncio.timeout: a cancellation of our own is told from anybody else's by counting.
        if watch.has_struck and task.uncancel() <= n_cancelled:
            raise CallerLeft("the caller hung up before the answer was there") from None
        raise
    finally:
        watch.end()


class _Watch:
    """Cancels the task that answers once nobody is there to be answered. Begins late: most answers are there first."""

    def __init__(self, request: Request, task: asyncio.Task[Any]) -> None:
        self.has_struck = False
        self._request = request
        self._task = task
        self._watcher: asyncio.Task[None] | None = None
        self._is_over = False
        self._timer = asyncio.get_running_loop().call_later(_UNWATCHED_S, self._begin)

    def _begin(self) -> None:
        self._watcher = asyncio.create_task(self._hang_up())
        self._watcher.add_done_callback(self._strike)

    async def _hang_up(self) -> None:
        while (await self._request.receive())["type"] != "http.disconnect":
            pass

    def _strike(self, watcher: asyncio.Task[None]) -> None:
        # Between the end of the watcher and this call the answer may have come: then its sending is left alone.
        if not watcher.cancelled() and not self._is_over:
            self.has_struck = True
            self._task.cancel()

    def end(self) -> None:
        """There is nothing more to watch over."""
        self._is_over = True
        self._timer.cancel()
        if self._watcher is not None:
            self._watcher.cancel()
            self._watcher = None  # a task that knows us, whom we know, would wait for the garbage collector


def bound(n: int, bounds: Bounds, what: str) -> None:
    """Raise `TooManySamples` for more than one request may hold."""
    limit = bounds.max_samples_per_request
    if n > limit:
        raise TooManySamples(f"{n} {what} in one request; the limit is {limit}: split it", n=n, limit=limit)


def _ids(asked: Sequence[SampleIn | structs.SampleIn | ComparisonIn | structs.ComparisonIn]) -> list[str]:
    """The id of each result: a label of the client, or the index. The responses of a group may share one."""
    return [str(i) if each.id is None else each.id for i, each in enumerate(asked)]

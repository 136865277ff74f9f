"""The routes of other wire formats: read the body as its dialect has it, score as everybody is scored, answer in kind.

Knows no caller in particular; each is a `Dialect` of the table.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from service.api import body, docs, origin
from service.api.dialects.dialect import NUMBERS, Answered, Dialect, Number
from service.api.problems import refusal
from service.api.replies import json_response
from service.api.routes import Endpoint, bound, note, read_deadline, while_connected
from service.api.stage import Bounds, Served, Stage
from service.clock import Clock
from service.errors import InvalidRequest, Loading, Overloaded, RateLimited, RequestRefused
from service.scoring import Asked, Scored
from service.watch import Origin

T = TypeVar("T")


def dialect_routes(
    dialects: Sequence[Dialect], stage: Stage, bounds: Bounds, clock: Clock, overload_status: int
) -> APIRouter:
    """A route for each."""
    router = APIRouter(tags=["dialects"])
    for dialect in dialects:
        router.add_api_route(
            dialect.path,
            _endpoint(dialect, stage, bounds, clock, overload_status),
            methods=["POST"],
            summary=f"As {dialect.callers} call it",
            **docs.foreign_operation(dialect.body, own_refusals=dialect.refuse is not refusal),
        )
    return router


def _endpoint(dialect: Dialect, stage: Stage, bounds: Bounds, clock: Clock, overload_status: int) -> Endpoint:
    decoder = msgspec.json.Decoder(dialect.body)

    async def endpoint(request: Request) -> Response:
        try:
            return await _answer(dialect, decoder, request, stage, bounds, clock)
        except RequestRefused as error:
            return dialect.refuse(error, overload_status)

    return endpoint


async def _answer(
    dialect: Dialect, decoder: msgspec.json.Decoder[Any], request: Request, stage: Stage, bounds: Bounds, clock: Clock
) -> Response:
    began = clock.now()
    parts = body.Parts.of(bounds.max_samples_per_request, bounds.admission_max_tokens)
    deadline = read_deadline(request, clock)
    said = origin.read(request.scope, {*dialect.options, "value"})
    whence = origin.of(request.scope, said.run, said.step)
    number = _number(said.options.get("value"), dialect)
    content = await body.read_foreign(request, decoder, parts)

    async def scored() -> tuple[Served, Sequence[Scored]]:
        served = stage.served_for(whence.run, said.only)
        samples = dialect.ask(content, served)
        bound(len(samples), bounds, "samples")
        note(request, run=whence.run, step=whence.step, samples=len(samples), epoch=served.epoch)
        return served, await _score(served, samples, deadline, whence)

    patience = _Patience(min(deadline, began + dialect.patience_s), clock, stage)
    served, results = await while_connected(request, patience.insist(scored))
    answered = Answered(served, results, number, said.options, clock.now() - began)
    reply = dialect.answer(content, answered)
    return json_response(reply, headers={"x-model-epoch": str(served.epoch), **dialect.headers(content, answered)})


async def _score(served: Served, samples: Sequence[Asked], deadline: float, origin: Origin) -> Sequence[Scored]:
    return await served.scoring.score(samples, deadline, origin) if samples else []


def _number(asked: str | None, dialect: Dialect) -> Number:
    if asked is None:
        return dialect.number
    if asked not in NUMBERS:
        raise InvalidRequest(f"value must be one of {', '.join(NUMBERS)}", field="value")
    return asked


class _Patience:
    """Asks again for a caller who would not, until a time."""

    def __init__(self, until: float, clock: Clock, stage: Stage) -> None:
        self._until = until
        self._clock = clock
        self._stage = stage

    async def insist(self, work: Callable[[], Awaitable[T]]) -> T:
        """The result of `work`, as soon as there are seats and a model. Raise what it raises in the end."""
        while True:
            try:
                return await work()
            except (Overloaded, Loading, RateLimited) as error:
                wait_s = error.retry_after_s or 1.0
                if self._clock.now() + wait_s > self._until:
                    raise
            await self._stage.pause(wait_s)  # a server that shuts down refuses at once whoever waits

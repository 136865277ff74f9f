"""The routes of other wire formats: read the body as its dialect has it, score as everybody is scored, answer in kind.

Knows no caller in particular; each is a `Dialect` of the table.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from starlette.responses import Response

from rewardserve.service.api import body, openapi, run_context
from rewardserve.service.api.deadline import read_deadline
from rewardserve.service.api.dialects.dialect import (
    NUMBERS,
    Answered,
    Dialect,
    Form,
    Number,
    check_model,
    check_version,
)
from rewardserve.service.api.replies import json_response
from rewardserve.service.api.routes.scoring import Endpoint, bound, note, note_failures, while_connected
from rewardserve.service.clock import Clock
from rewardserve.service.errors import InvalidRequest, Loading, ModelNotServed, Overloaded, RateLimited, RequestRefused
from rewardserve.service.models.active_models import Bounds, Served, Stage
from rewardserve.service.scoring import Asked, Scored
from rewardserve.service.tripwires.io.run_watcher import Origin

T = TypeVar("T")
Reader = Callable[[], Awaitable[tuple[Form, Any]]]
"""Brings the form of a body, and the body as its record."""

"""SGLang's clients send this where their user has named no model."""


@dataclass(frozen=True, slots=True)
class DialectPolicy:
    """What an operator has chosen for all wire formats.

    `aliases` are names of the model beside its own; `options` the values of query parameters that a URL leaves out.
    """

    overload_status: int = Overloaded.status
    aliases: frozenset[str] = frozenset()
    options: Mapping[str, str] = field(default_factory=dict)


def dialect_routes(
    dialects: Sequence[Dialect], stage: Stage, bounds: Bounds, clock: Clock, policy: DialectPolicy
) -> APIRouter:
    """A route for each."""
    router = APIRouter(tags=["dialects"])
    for dialect in dialects:
        router.add_api_route(
            dialect.path,
            endpoint_of(dialect, stage, bounds, clock, policy),
            methods=["POST"],
            summary=f"For {dialect.callers}",
            **openapi.foreign_operation(dialect.path, [form.body for form in dialect.forms], dialect.options),
        )
    return router


def endpoint_of(dialect: Dialect, stage: Stage, bounds: Bounds, clock: Clock, policy: DialectPolicy) -> Endpoint:
    """The endpoint of one wire format."""
    answer = _answer_of(dialect, stage, bounds, clock, policy)
    parts = body.Parts.of(bounds.max_samples_per_request, bounds.admission_max_tokens)

    async def endpoint(request: Request) -> Response:
        return await answer(request, lambda: body.read_foreign(request, parts, dialect.read))

    return endpoint


def value_endpoint_of(
    dialect: Dialect, stage: Stage, bounds: Bounds, clock: Clock, policy: DialectPolicy
) -> Callable[[Request, Any], Awaitable[Response]]:
    """The endpoint of one wire format, for a request whose JSON has been read."""
    answer = _answer_of(dialect, stage, bounds, clock, policy)

    async def endpoint(request: Request, value: Any) -> Response:
        async def read() -> tuple[Form, Any]:
            return dialect.read(value)

        return await answer(request, read)

    return endpoint


def _answer_of(
    dialect: Dialect, stage: Stage, bounds: Bounds, clock: Clock, policy: DialectPolicy
) -> Callable[[Request, Reader], Awaitable[Response]]:
    async def answer(request: Request, read: Reader) -> Response:
        try:
            return await _answer(dialect, read, request, stage, bounds, clock, policy)
        except ModelNotServed as error:
            return dialect.not_served(error)
        except RequestRefused as error:
            return dialect.refuse(error, policy.overload_status)

    return answer


async def _answer(
    dialect: Dialect,
    read: Reader,
    request: Request,
    stage: Stage,
    bounds: Bounds,
    clock: Clock,
    policy: DialectPolicy,
) -> Response:
    began = clock.now()
    deadline = read_deadline(request, clock)
    said = run_context.read(request.scope, {*dialect.options, "value"})
    whence = run_context.of(request.scope, said.run, said.step)
    number = _number(said.options.get("value"), dialect)
    _check_options(said.options, dialect)
    form, content = await read()
    is_activated = _is_activated(form, content, has_value="value" in said.options)
    accepted = policy.aliases | dialect.fixed_names
    named = request.path_params.get("model") or form.model(content)

    async def scored() -> tuple[Served, Sequence[Scored]]:
        served = stage.served_for(whence.run, said.model_digests)
        check_model(named, served, accepted)
        check_version(request.path_params.get("version"), served)
        samples = await body.off_loop(await request.body(), form.ask, content, served, most=body.MOST_ON_LOOP)
        if not samples and not form.may_be_empty:
            raise InvalidRequest(f"{form.texts[-1]} is empty: there is nothing to score", field=form.texts[-1])
        bound(len(samples), bounds, "samples")
        note(request, run=whence.run, step=whence.step, samples=len(samples), version=served.version)
        return served, await _score(served, samples, deadline, whence)

    patience = _Patience(min(deadline, began + dialect.patience_s), clock, stage)
    served, results = await while_connected(request, patience.insist(scored))
    note_failures(request, results)
    options = {**policy.options, **said.options}
    answered = Answered(served, results, number, options, clock.now() - began, is_activated)
    reply = form.answer(content, answered)
    return json_response(reply, headers={**served.headers, **dialect.headers(content, answered)})


async def _score(served: Served, samples: Sequence[Asked], deadline: float, origin: Origin) -> Sequence[Scored]:
    return await served.scoring.score(samples, deadline, origin) if samples else []


def _number(asked: str | None, dialect: Dialect) -> Number:
    if asked is None:
        return dialect.number
    if asked not in NUMBERS:
        raise InvalidRequest(f"value must be one of {', '.join(NUMBERS)}", field="value")
    return asked


def _check_options(given: Mapping[str, str], dialect: Dialect) -> None:
    for name, values in dialect.options.items():
        if values and given.get(name, next(iter(values))) not in values:
            raise InvalidRequest(f"{name} must be one of {', '.join(sorted(values))}", field=name)
    for name, taken in dialect.taken.items():
        if name in given and (not given[name] or given[name] in taken):
            raise InvalidRequest(
                f"{name} must be a name, and none that the reply has already: {', '.join(sorted(taken))}", field=name
            )


def _is_activated(form: Form, content: Any, *, has_value: bool) -> bool:
    """Whether the caller gets a sigmoid. A URL that says which number is meant, means that number as it is."""
    asked = form.activation(content)
    if asked and has_value:
        raise InvalidRequest(
            "?value= asks for a number as it is, and the body for an activation of it: send one of the two",
            field="value",
        )
    return form.activates and not has_value if asked is None else asked


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

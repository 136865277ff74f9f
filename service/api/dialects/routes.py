"""The routes of other wire formats: decode the body by its `Dialect`, score the samples, and reply in the same format.

Knows no specific wire format; each is a `Dialect` of the table.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import APIRouter, Request
from msgspec import UNSET
from starlette.responses import Response

from rewardserve.model.text.nearest_word import did_you_mean
from rewardserve.service.api import body, openapi, run_context
from rewardserve.service.api.deadline import read_deadline
from rewardserve.service.api.dialects.dialect import (
    SCORE_KINDS,
    BodyFormat,
    Dialect,
    ScoredRequest,
    ScoreKind,
    check_model,
    check_version,
)
from rewardserve.service.api.http.disconnects import cancel_on_disconnect
from rewardserve.service.api.middleware.fast_router import Endpoint
from rewardserve.service.api.replies import json_response
from rewardserve.service.api.request_state import set_is_final, set_log_fields
from rewardserve.service.api.server_limits import ServerLimits
from rewardserve.service.clock import Clock
from rewardserve.service.errors import InvalidRequest, Loading, ModelNotServed, Overloaded, RateLimited, RequestRefused
from rewardserve.service.models.active_models import ActiveModels
from rewardserve.service.models.runtime import ModelRuntime
from rewardserve.service.scoring import SampleOrError, SampleResult
from rewardserve.service.tripwires.run_context import RunContext

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class DialectPolicy:
    """Settings of all wire formats.

    `aliases` are further names of the model; `options` are defaults of query parameters.
    """

    overload_status: int = Overloaded.status
    aliases: frozenset[str] = frozenset()
    options: Mapping[str, str] = field(default_factory=dict)


def dialect_routes(
    dialects: Sequence[Dialect],
    active_models: ActiveModels,
    server_limits: ServerLimits,
    clock: Clock,
    policy: DialectPolicy,
) -> APIRouter:
    """Create a route for each dialect."""
    router = APIRouter(tags=["wire formats"])
    for dialect in dialects:
        router.add_api_route(
            dialect.path,
            _route_of(DialectEndpoint(dialect, active_models, server_limits, clock, policy)),
            methods=["POST"],
            summary=f"For {dialect.clients}",
            description=dialect.description,
            **openapi.dialect_operation(dialect),
        )
    return router


class DialectEndpoint:
    """The endpoint of one wire format."""

    def __init__(
        self,
        dialect: Dialect,
        active_models: ActiveModels,
        server_limits: ServerLimits,
        clock: Clock,
        policy: DialectPolicy,
    ) -> None:
        self.dialect = dialect
        self._active_models = active_models
        self._server_limits = server_limits
        self._clock = clock
        self._policy = policy
        self._json_limits = body.JsonLimits.of(
            server_limits.max_samples_per_request, server_limits.admission_max_tokens
        )

    async def answer(self, request: Request, value: Any = UNSET) -> Response:
        """Answer a request, or return the refusal in this format. `value`: the JSON of its body, where it is decoded already."""
        try:
            return await self._score(request, value)
        except ModelNotServed as error:
            return self.dialect.render_model_not_served(error)
        except RequestRefused as error:
            return self.dialect.render_error(error, self._policy.overload_status)

    async def _score(self, request: Request, value: Any) -> Response:
        dialect, clock, policy = self.dialect, self._clock, self._policy
        began = clock.now()
        deadline = read_deadline(request, clock)
        parameters = run_context.read_parameters(request.scope, {*dialect.options, "value"})
        context = run_context.run_context_of(request.scope, parameters.run, parameters.step)
        score_kind = _score_kind(parameters.options.get("value"), dialect)
        _check_options(parameters.options, dialect)
        if value is UNSET:
            value = await body.read_json_body(request, self._json_limits)
        raw = await request.body()
        body_format, content = await body.run_off_loop(raw, dialect.read, value, most=body.MAX_LOOP_BYTES)
        applies_sigmoid = _is_activated(body_format, content, has_value="value" in parameters.options)
        accepted = policy.aliases | dialect.fixed_names
        in_path = request.path_params.get("model")
        named = in_path or body_format.model(content)

        async def scored() -> tuple[ModelRuntime, Sequence[SampleResult]]:
            runtime = self._active_models.for_request(context.run, parameters.model_digests)
            check_model(named, runtime, accepted, is_in_path=in_path is not None)
            check_version(request.path_params.get("version"), runtime)
            samples = await body.run_off_loop(raw, body_format.to_samples, content, runtime, most=body.MAX_LOOP_BYTES)
            if not samples and not body_format.may_be_empty:
                field = body_format.text_fields[-1]
                raise InvalidRequest(f"{field} is empty: there is nothing to score", field=field)
            self._server_limits.check_sample_count(len(samples), "samples")
            set_log_fields(request, run=context.run, step=context.step, samples=len(samples), version=runtime.version)
            of_samples = run_context.with_tasks(context, body_format.tasks(content), parameters.task, len(samples))
            return runtime, await _score(runtime, samples, deadline, of_samples)

        retry = _AdmissionRetry(min(deadline, began + dialect.queue_timeout_s), clock, self._active_models)
        runtime, results = await cancel_on_disconnect(request, retry.run(scored))
        set_is_final(request, results)
        options = {**policy.options, **parameters.options}
        scored_request = ScoredRequest(runtime, results, score_kind, options, clock.now() - began, applies_sigmoid)
        reply = body_format.to_reply(content, scored_request)
        return json_response(reply, headers={**runtime.headers, **dialect.headers(content, scored_request)})


def _route_of(endpoint: DialectEndpoint) -> Endpoint:
    """A function for FastAPI, whose only parameter is the request."""

    async def route(request: Request) -> Response:
        return await endpoint.answer(request)

    return route


async def _score(
    runtime: ModelRuntime, samples: Sequence[SampleOrError], deadline: float, context: RunContext
) -> Sequence[SampleResult]:
    return await runtime.scoring.score(samples, deadline, context) if samples else []


def _score_kind(requested: str | None, dialect: Dialect) -> ScoreKind:
    if requested is None:
        return dialect.score_kind
    if requested not in SCORE_KINDS:
        raise InvalidRequest(
            f"value must be one of {', '.join(SCORE_KINDS)}{did_you_mean(requested, SCORE_KINDS)}", field="value"
        )
    return requested


def _check_options(given: Mapping[str, str], dialect: Dialect) -> None:
    for name, values in dialect.options.items():
        if values and given.get(name, next(iter(values))) not in values:
            hint = did_you_mean(given[name], values)
            raise InvalidRequest(f"{name} must be one of {', '.join(sorted(values))}{hint}", field=name)
    for name, taken in dialect.reserved_values.items():
        if name in given and (not given[name] or given[name] in taken):
            raise InvalidRequest(
                f"{name} must be a name, and not one of the other fields of the reply: {', '.join(sorted(taken))}",
                field=name,
            )


def _is_activated(body_format: BodyFormat, content: Any, *, has_value: bool) -> bool:
    """Whether the reply has the sigmoid of the score. `?value=` in the URL selects a score without a sigmoid."""
    requested = body_format.activation_of(content)
    if requested and has_value:
        raise InvalidRequest(
            "?value= selects a score without an activation, and the body requests an activation: send one of the two",
            field="value",
        )
    return body_format.activates_by_default and not has_value if requested is None else requested


class _AdmissionRetry:
    """Retry admission until a deadline, for clients that do not retry."""

    def __init__(self, until: float, clock: Clock, active_models: ActiveModels) -> None:
        self._until = until
        self._clock = clock
        self._active_models = active_models

    async def run(self, work: Callable[[], Awaitable[T]]) -> T:
        """Run `work` until it finds capacity and a model, and return its result. At the deadline raise its error."""
        while True:
            try:
                return await work()
            except (Overloaded, Loading, RateLimited) as error:
                wait_s = error.retry_after_s or 1.0
                if self._clock.now() + wait_s > self._until:
                    raise
            await self._active_models.sleep(wait_s)  # at shutdown waiting requests are refused at once

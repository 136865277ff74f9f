"""The OpenAPI document: bodies, parameters and errors. Routes decode their bodies themselves, so FastAPI cannot document them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict, Field
from pydantic.json_schema import models_json_schema

from rewardserve.service.api.names import MAX_NAME_CHARS
from rewardserve.service.api.requests import MAX_STEP, StrictRecord
from rewardserve.service.api.schemas import ERROR, CompareReply, ErrorReply, ScoreReply

_REF = "#/components/schemas/{name}"

_FOREIGN = "`host_not_allowed` or `origin_not_allowed`: on a server without keys, an unknown host name or a page of another site"
_FORBIDDEN = f"`forbidden`: the key lacks the scope of this route. {_FOREIGN}"
_NO_REQUEST = "`invalid_path` or `invalid_http`: not an HTTP request, or a path with non-printable characters"
_EVERYWHERE: dict[int, str] = {
    400: _NO_REQUEST,
    403: _FOREIGN,
    408: "`head_timeout`: the head of the request did not arrive in time",
    431: "`head_too_large`: the head of the request is larger than the limit",
}
"""Errors of every route, raised before the route is called."""
_KEYED: dict[int, str] = {
    401: "`unauthorized`: no valid key",
    403: _FORBIDDEN,
    429: "`rate_limited`: the key has used up its rate limit; see Retry-After",
}
"""Errors of every route that needs a key."""
_ERRORS: dict[int, str] = {
    **_KEYED,
    431: _EVERYWHERE[431],
    400: f"`invalid_json`. {_NO_REQUEST}",
    403: f"{_FORBIDDEN}. `run_not_allowed`: the key is bound to other runs, or the run to other keys. `run_refused`: a trip wire "
    "blocks this run, in a wire format without errors of samples",
    404: "`model_not_served`: the request names a model, or a version of it, that is not the one in service",
    408: "`body_timeout` or `head_timeout`: the request did not arrive in time",
    409: "`digest_not_served` or `version_gone`: the model that the request selects, or that its run is pinned to, is not loaded",
    413: "`body_too_large`, or `request_too_large` for the capacity of the server",
    415: "`unsupported_media_type`",
    422: "`invalid_request` with the JSON path of the first invalid field, `too_many_samples`, `idempotency_key_reused`; "
    "`sample_refused` in a wire format without errors of samples",
    429: "`rate_limited`: the key has used up its rate limit. `overloaded`, if the operator has set 429; see Retry-After",
    500: "`internal`: a bug in the server. `batcher_stopped` or `scorer_dead`: restart the process",
    503: "`overloaded`, `loading`, `scorer_hanging`, `shutting_down` or `sample_failed`, and `scorer_failing` of /readyz; see "
    "Retry-After",
    504: "`deadline_exceeded`: the deadline of x-deadline-ms has passed",
}
ADMIN = {
    403: f"`admin_needs_key`: without keys, only programs on the machine of the server may use this route. {_FORBIDDEN}",
    409: "`version_gone`, `version_in_use`, `load_in_progress`, `nothing_is_loading` or `nothing_to_roll_back`",
    422: "`model_refused` with the reason why the model cannot be served, or `invalid_request`",
}
"""Errors of the admin routes."""

_STRING = {"type": "string"}


def _parameter(
    place: str, name: str, schema: Mapping[str, Any], description: str, example: Any = None
) -> dict[str, Any]:
    """Describe a parameter. `/docs` sends its example with every request, so it has none where no value suits every server."""
    described = {"name": name, "in": place, "required": place == "path", "schema": schema, "description": description}
    return described if example is None else {**described, "example": example}


_REPLY_PARAMETERS = [
    _parameter(
        "header", "x-deadline-ms", {"type": "integer", "minimum": 0}, "deadline of the reply in milliseconds from now", 30_000
    ),
    _parameter(
        "header", "idempotency-key", {"type": "string", "maxLength": 255},
        "a retry with the same key gets the stored reply, and is scored and counted once; failures that may pass are not stored",
        "ppo-7-120-3",
    ),
]  # fmt: skip
_RUN_PARAMETERS = [
    _parameter(place, name if place == "query" else f"x-{name.replace('_', '-')}", *described)
    for name, *described in (
        (
            "run",
            {"type": "string", "maxLength": MAX_NAME_CHARS},
            "name of the training run; send it in the URL or in the header, not with two values",
            "ppo-7",
        ),
        (
            "step",
            {"type": "integer", "minimum": 0, "maximum": MAX_STEP},
            "training step of the run; send it in the URL or in the header, not with two values",
            120,
        ),
        (
            "model_digest",
            _STRING,
            "digests of the only model that may answer, separated by commas: `contract`, `calibration` or `pipeline` of a reply "
            "of this server (sha256: and 64 hexadecimal digits); without that model the server refuses with 409",
        ),
    )
    for place in ("query", "header")
]
_VALUE = _parameter(
    "query", "value", {"type": "string", "enum": ["reward", "raw", "normalized"]},
    "the score of a sample in the reply, without an activation; default: see docs/how-to/trainers.md", "raw",
)  # fmt: skip
_VALUE_OF_PAIRS = _parameter(
    "query", "value", _VALUE["schema"],
    f"for bodies of other wire formats: {_VALUE['description']}. Refused with `samples`, whose results have all scores",
)  # fmt: skip
_OPTIONS = {
    "reward_key": (
        "reply with an object that has the reward under this name, instead of a bare number (slime --reward-key)",
        "score",
    ),
    "on_failure": (
        "mask: mask an episode without a score; refuse: reply with an error; default: REWARD_VERIFY_ON_FAILURE",
        "refuse",
    ),
}
_IN_PATH = {
    "model": ("the name of the model in service, an alias, a digest, or reward_model", "reward_model"),
    "version": ("version of the model within this process, `model_version` in replies", "1"),
    "run": ("name of the run", "ppo-7"),
    "wire": ("name of the trip wire", "repetition"),
}
"""Description and example."""


class ForeignError(BaseModel):
    """An error in the wire format of another server."""

    model_config = ConfigDict(extra="allow")

    error: str | dict[str, Any] = Field(description="message, or an object with one", examples=[ERROR])


class ForeignReply(BaseModel):
    """Scores in the wire format of another server."""

    model_config = ConfigDict(extra="allow")


def operation(body: type[StrictRecord], foreign: Sequence[Any] = ()) -> dict[str, Any]:
    """Build the arguments of a scoring route that reads `body`: its documentation and its errors.

    `foreign`: bodies of other wire formats that the route reads too.
    """
    examples = {f"example {i}": {"value": each} for i, each in enumerate(body.EXAMPLES)}
    content = {"application/json": {"schema": _schema([body, *foreign]), "examples": examples}}
    parameters = [*_REPLY_PARAMETERS, *_RUN_PARAMETERS, *([_VALUE_OF_PAIRS] if foreign else [])]
    responses = errors(*(status for status in _ERRORS if status != 404 or foreign))
    return {
        "responses": in_any_shape(responses) if foreign else responses,
        "openapi_extra": {"requestBody": {"required": True, "content": content}, "parameters": parameters},
    }


def admin_operation(body: type[StrictRecord], *statuses: int) -> dict[str, Any]:
    """Build the arguments of an admin route that reads `body`."""
    content = {"application/json": {"schema": _schema([body])}}
    return {
        "responses": errors(400, 408, 413, 415, *statuses, 503, words=ADMIN),
        "openapi_extra": {"requestBody": {"required": True, "content": content}},
    }


def foreign_operation(
    path: str, bodies: Sequence[Any], example_reply: Any, options: Mapping[str, Collection[str]]
) -> dict[str, Any]:
    """Build the arguments of a route of another wire format: its bodies, an example reply, and its errors.

    `options` are its query parameters with their permitted values; none: any value.
    """
    content = {"application/json": {"schema": _schema(bodies)}}
    good = {"description": "Scores", "content": {"application/json": {"example": example_reply}}}
    optional = [
        _parameter("query", name, {**_STRING, "enum": sorted(values)} if values else _STRING, *_OPTIONS[name])
        for name, values in sorted(options.items())
    ]
    in_path = [_parameter("path", name, _STRING, *_IN_PATH[name]) for name in _IN_PATH if f"{{{name}" in path]
    return {
        "responses": {200: good, **in_any_shape(errors(*_ERRORS))},
        "openapi_extra": {
            "requestBody": {"required": True, "content": content},
            "parameters": [*in_path, *_REPLY_PARAMETERS, *_RUN_PARAMETERS, _VALUE, *optional],
        },
    }


def _schema(bodies: Sequence[Any]) -> dict[str, Any]:
    schemas = msgspec.json.schema_components(bodies, ref_template=_REF)[0]
    return schemas[0] if len(schemas) == 1 else {"anyOf": list(schemas)}


def errors(
    *statuses: int, words: Mapping[int, str] | None = None, is_open: bool = False
) -> dict[int | str, dict[str, Any]]:
    """Build the errors of these statuses and of every route, with examples. `is_open`: the route needs no key. `words`: further
    descriptions by status.
    """
    responses = {**_EVERYWHERE, **({} if is_open else _KEYED), **{status: _ERRORS[status] for status in statuses}}
    responses |= {status: text for status, text in (words or {}).items() if status in responses}
    return {status: _error(text) for status, text in sorted(responses.items())}


def in_any_shape(responses: Mapping[int | str, dict[str, Any]]) -> dict[int | str, dict[str, Any]]:
    """Document that errors have the shape of this server or of the wire format: a request in no known format gets the former."""
    return {status: {**error, "model": ErrorReply | ForeignError} for status, error in responses.items()}


def install_openapi(app: FastAPI, bodies: Sequence[Any], open_paths: frozenset[str] = frozenset()) -> None:
    """Add the schemas of the bodies of all routes to the OpenAPI document."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, bodies, open_paths)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation says


def _document(app: FastAPI, bodies: Sequence[Any], open_paths: frozenset[str]) -> dict[str, Any]:
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes, tags=app.openapi_tags
    )
    components = document.setdefault("components", {})
    schemas = components.setdefault("schemas", {})
    # FastAPI leaves the nulls out of examples.
    _, replies = models_json_schema(
        [(ScoreReply, "serialization"), (CompareReply, "serialization")], ref_template=_REF.format(name="{model}")
    )
    schemas |= replies["$defs"]
    schemas |= msgspec.json.schema_components(bodies, ref_template=_REF)[1]
    for body in bodies:
        if examples := getattr(body, "EXAMPLES", ()):
            schemas[body.__name__]["examples"] = list(examples)
    # FastAPI adds its validation error to every route with a path parameter; here these are strings, which are always valid.
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)
    components["securitySchemes"] = {
        "key": {
            "type": "http",
            "scheme": "bearer",
            "description": "API key, if the server has keys; see rewardserve keys",
        }
    }
    for path, operations in document["paths"].items():
        for of_route in operations.values():
            of_route["security"] = [] if path in open_paths else [{"key": []}, {}]
            _describe_path_parameters(of_route)
    return document


def _describe_path_parameters(of_route: dict[str, Any]) -> None:
    if "HTTPValidationError" in str(of_route["responses"].get("422", {}).get("content")):
        del of_route["responses"]["422"]
    for parameter in of_route.get("parameters", ()):
        if parameter["in"] == "path":
            parameter["description"], parameter["example"] = _IN_PATH[parameter["name"]]


def _error(text: str) -> dict[str, Any]:
    code = text.split("`")[1]
    example = {"error": {"code": code, "message": "the cause and the remedy; numbers are further fields"}}
    return {"model": ErrorReply, "description": text, "content": {"application/json": {"example": example}}}

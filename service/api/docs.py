"""What `/docs` says about bodies and errors. Bodies are read by hand, so FastAPI cannot know by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel, ConfigDict
from pydantic.json_schema import models_json_schema

from service.api.names import LONGEST_NAME
from service.api.schemas import CompareRequest, ErrorReply, ScoreRequest
from service.api.wire import MOST_STEPS

_REF = "#/components/schemas/{model}"
_REF_OF_STRUCT = "#/components/schemas/{name}"
_ERRORS: dict[int, str] = {
    400: "`invalid_json`; `invalid_path` or `invalid_http` for what is no request",
    401: "`unauthorized`: no key, or a wrong one",
    403: "`run_refused`: a trip wire has ended the service of this run, in a wire format without errors of samples",
    408: "`body_timeout`",
    409: "`digest_not_served` or `epoch_gone`: the model that the request wants, or that its run is pinned to, is not loaded",
    413: "`body_too_large`, or `request_too_large` for all seats together",
    415: "`unsupported_media_type`",
    422: "`invalid_request` with the JSON path of the offending field, `too_many_samples`; `sample_refused` where a wire "
    "format has no word for one sample's error",
    429: "`overloaded`, where the operator has chosen 429",
    500: "`internal`: a bug in the server",
    503: "`overloaded`, `loading`, `scorer_hanging`, `shutting_down` or `sample_failed`, and `scorer_failing` of /readyz; see "
    "Retry-After",
    504: "`deadline_exceeded`: the time given in x-deadline-ms is over",
}
_DEADLINE = {
    "name": "x-deadline-ms", "in": "header", "required": False, "schema": {"type": "integer", "minimum": 0},
    "description": "milliseconds after which the answer is of no use",
}  # fmt: skip
_IDEMPOTENCY = {
    "name": "idempotency-key", "in": "header", "required": False, "schema": {"type": "string", "maxLength": 255},
    "description": "a repeat with the same key gets the same answer, and is scored and counted once",
}  # fmt: skip
_ORIGIN = [
    {"name": name, "in": "query", "required": False, "schema": schema, "description": description}
    for name, schema, description in (
        (
            "run",
            {"type": "string", "maxLength": LONGEST_NAME},
            "the training that this belongs to; or the header x-run",
        ),
        ("step", {"type": "integer", "minimum": 0, "maximum": MOST_STEPS}, "of that training; or the header x-step"),
        (
            "only",
            {"type": "string"},
            "digests of the one model that may answer, as replies have them; or the header x-only",
        ),
    )
]


class _AnyError(BaseModel):
    """Why something was refused, in the shape that this wire format has for it."""

    model_config = ConfigDict(extra="allow")

    error: str | dict[str, Any]


def operation(body: type[BaseModel]) -> dict[str, Any]:
    """Arguments for a route that reads `body`: its documentation, and every error that it may answer."""
    content = {"application/json": {"schema": {"$ref": _REF.format(model=body.__name__)}}}
    return {
        "responses": errors(),
        "openapi_extra": {
            "requestBody": {"required": True, "content": content},
            "parameters": [_DEADLINE, _IDEMPOTENCY, *_ORIGIN],
        },
    }


def admin_operation(body: type[BaseModel], *statuses: int) -> dict[str, Any]:
    """Arguments for a route of an operator that reads `body`."""
    content = {"application/json": {"schema": body.model_json_schema()}}
    return {
        "responses": errors(400, 401, 403, 415, *statuses, 503),
        "openapi_extra": {"requestBody": {"required": True, "content": content}},
    }


def foreign_operation(body: Any, *, own_refusals: bool = False) -> dict[str, Any]:
    """Arguments for a route of another's wire format: what it reads, and the errors that it may answer.

    `own_refusals`: in a shape of its own, but for those that are refused before anybody knows the format.
    """
    (schema,), _ = msgspec.json.schema_components([body], ref_template=_REF_OF_STRUCT)
    content = {"application/json": {"schema": schema}}
    said = {status: {**error, "model": _AnyError} if own_refusals else error for status, error in errors().items()}
    return {
        "responses": said,
        "openapi_extra": {
            "requestBody": {"required": True, "content": content}, "parameters": [_DEADLINE, _IDEMPOTENCY, *_ORIGIN]
        },
    }  # fmt: skip


def errors(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """These errors, or all, with an example each."""
    words = {**_ERRORS, 404: "`no_such_alarm`"}
    return {status: _error(status, words[status]) for status in statuses or _ERRORS}


def install(app: FastAPI, foreign: Sequence[Any] = ()) -> None:
    """Make the schemas of the bodies part of the OpenAPI document; `foreign` are those of other wire formats."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
                tags=app.openapi_tags,
            )
            _, bodies = models_json_schema(
                [(ScoreRequest, "validation"), (CompareRequest, "validation")], ref_template=_REF
            )
            _, others = msgspec.json.schema_components(foreign, ref_template=_REF_OF_STRUCT)
            schema.setdefault("components", {}).setdefault("schemas", {}).update(bodies["$defs"] | others)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # the way that FastAPI documents


def _error(status: int, text: str) -> dict[str, Any]:
    code = text.split("`")[1]
    example = {"error": {"code": code, "message": "what happened, and the numbers that matter beside it"}}
    return {"model": ErrorReply, "description": text, "content": {"application/json": {"example": example}}}

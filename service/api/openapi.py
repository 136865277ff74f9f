"""The OpenAPI document: bodies, parameters, replies and errors, from the records that decode and encode them.

Routes do so themselves, so FastAPI cannot document them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgspec
from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from rewardserve.service.api.dialects.dialect import Dialect
from rewardserve.service.api.error_examples import example_of_error
from rewardserve.service.api.names import MAX_NAME_CHARS
from rewardserve.service.api.requests import MAX_STEP, StrictRecord
from rewardserve.service.api.schemas.errors import ErrorReply
from rewardserve.service.api.schemas.record import ReplyRecord

_REF = "#/components/schemas/{name}"
_RECORDS = "rewardserve.service.api."
"""Where the records of requests and replies are; those of a library may have the same names."""

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
    409: "`digest_not_served`, `version_gone` or `snapshot_gone`: the model that the request selects, or that its run is pinned "
    "to, is not loaded. `snapshot_differs`: the approvals of the run are pinned to another snapshot",
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
NO_PARAMETERS = {422: "`invalid_request`: the URL has a query parameter, and this route has none"}
"""Error of a route that reads neither a body nor query parameters."""

_STRING = {"type": "string"}
Responses = dict[int | str, dict[str, Any]]


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
_TASK_PARAMETERS = [
    _parameter(
        place, name, {"type": "string", "maxLength": MAX_NAME_CHARS},
        "task of the samples for which the body names none; send it in the URL or in the header, not with two values", "math",
    )
    for place, name in (("query", "task"), ("header", "x-task"))
]  # fmt: skip
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
    "sample": ("number of the sample in the review store", "17"),
    "label": ("number of the label, as `POST /review/labels` answered", "7"),
}
"""Description and example."""


def operation(body: type[StrictRecord], reply: type[ReplyRecord], dialect: Dialect | None = None) -> dict[str, Any]:
    """Build the arguments of a scoring route that reads `body`: its documentation, its reply and its errors.

    `dialect`: another wire format whose bodies the route reads too.
    """
    forms = dialect.body_formats if dialect else ()
    examples = {f"example {i}": {"value": each} for i, each in enumerate(body.EXAMPLES)}
    content = {"application/json": {"schema": _schema([body, *(form.body for form in forms)]), "examples": examples}}
    of_samples = [_VALUE_OF_PAIRS, *_TASK_PARAMETERS] if dialect else []
    parameters = [*_REPLY_PARAMETERS, *_RUN_PARAMETERS, *of_samples]
    types = [reply, *(each for form in forms for each in form.replies)]
    not_served = dialect.not_served_reply if dialect else ErrorReply
    statuses = [status for status in _ERRORS if status != 404 or dialect]
    return {
        "responses": {
            200: _json("Results", types, example_of(reply)),
            **errors(*statuses, not_served_reply=not_served),
        },
        "openapi_extra": {"requestBody": {"required": True, "content": content}, "parameters": parameters},
    }


def admin_operation(
    body: type[StrictRecord], reply: type[ReplyRecord], *statuses: int, words: Mapping[int, str] | None = None
) -> dict[str, Any]:
    """Build the arguments of a route that reads `body` and scores nothing. `words` of errors: those of the admin routes."""
    content = {"application/json": {"schema": _schema([body])}}
    return {
        "responses": replies(reply, 400, 408, 413, 415, *statuses, 503, words=words or ADMIN),
        "openapi_extra": {"requestBody": {"required": True, "content": content}},
    }


def query_operation(
    query: type[StrictRecord], reply: type[ReplyRecord] | Responses, *statuses: int, **of_errors: Any
) -> dict[str, Any]:
    """Build the arguments of a route that reads `query` from its URL."""
    schema = msgspec.json.schema(query)["$defs"][query.__name__]
    parameters = [
        {
            **_parameter("query", name, each, each.pop("description"), each.pop("examples")[0]),
            "required": name in schema.get("required", ()),
        }
        for name, each in schema["properties"].items()
    ]
    responses = reply if isinstance(reply, dict) else replies(reply, *statuses, **of_errors)
    return {"responses": responses, "openapi_extra": {"parameters": parameters}}


def dialect_operation(dialect: Dialect) -> dict[str, Any]:
    """Build the arguments of a route of another wire format: its bodies, its replies, and its errors."""
    forms = dialect.body_formats
    content = {"application/json": {"schema": _schema([form.body for form in forms])}}
    good = _json("Scores", [each for form in forms for each in form.replies], dialect.example_reply)
    optional = [
        _parameter("query", name, {**_STRING, "enum": sorted(values)} if values else _STRING, *_OPTIONS[name])
        for name, values in sorted(dialect.options.items())
    ]
    in_path = [_parameter("path", name, _STRING, *_IN_PATH[name]) for name in _IN_PATH if f"{{{name}" in dialect.path]
    refused = errors(
        *_ERRORS,
        *dialect.error_statuses,
        words=dialect.error_statuses,
        error_reply=dialect.error_reply,
        not_served_reply=dialect.not_served_reply,
    )
    return {
        "responses": {200: good, **refused},
        "openapi_extra": {
            "requestBody": {"required": True, "content": content},
            "parameters": [*in_path, *_REPLY_PARAMETERS, *_RUN_PARAMETERS, *_TASK_PARAMETERS, _VALUE, *optional],
        },
    }


def replies(reply: type[ReplyRecord], *statuses: int, **of_errors: Any) -> Responses:
    """Build the responses of a route with this reply, and with the errors of `errors`."""
    words = (reply.__doc__ or "").split("\n")[0]
    return {200: _json(words, [reply], example_of(reply)), **errors(*statuses, **of_errors)}


def text_reply(media_type: str, example: str, *statuses: int, **of_errors: Any) -> Responses:
    """Build the responses of a route that replies with text."""
    content = {media_type: {"schema": _STRING, "example": example}}
    return {200: {"description": "Text", "content": content}, **errors(*statuses, **of_errors)}


def errors(
    *statuses: int,
    words: Mapping[int, str] | None = None,
    is_open: bool = False,
    error_reply: Any = ErrorReply,
    not_served_reply: Any = None,
) -> Responses:
    """Build the errors of these statuses and of every route, with an example of each code. `is_open`: the route needs no key.
    `words`: further descriptions by status. `error_reply` is an error in the wire format of another server, `not_served_reply`
    one of an unknown model, where that is another; a request in no known format gets an error of this server.
    """
    texts = {**_EVERYWHERE, **({} if is_open else _KEYED)}
    texts |= {status: _ERRORS[status] for status in statuses if status in _ERRORS}
    texts |= {status: text for status, text in (words or {}).items() if status in texts or status in statuses}
    return {
        status: _error(text, (ErrorReply, not_served_reply or error_reply if status == 404 else error_reply))
        for status, text in sorted(texts.items())
    }


def _error(text: str, types: Sequence[Any]) -> dict[str, Any]:
    codes = dict.fromkeys(re.findall(r"`([a-z]+(?:_[a-z]+)*)`", text))
    examples = {code: {"value": example} for code in codes if (example := example_of_error(code)) is not None}
    return {
        "description": text,
        "content": {"application/json": {"schema": _schema(dict.fromkeys(types)), "examples": examples}},
    }


def _json(description: str, types: Sequence[Any], example: Any) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": _schema(types), "example": example}}}


def example_of(record: type[msgspec.Struct]) -> dict[str, Any]:
    """Build an example from those of the fields."""
    # Not from the schema of the record: msgspec makes those of all its parts too, and every start of a server waits for that.
    return {
        field.encode_name: next(
            part.examples[0] for part in field.type.__metadata__ if isinstance(part, msgspec.Meta) and part.examples
        )
        for field in msgspec.structs.fields(record)
    }


def _schema(types: Iterable[Any]) -> dict[str, Any]:
    schemas = [_schema_of(each) for each in types]
    distinct = [each for i, each in enumerate(schemas) if each not in schemas[:i]]
    return distinct[0] if len(distinct) == 1 else {"anyOf": distinct}


def _schema_of(kind: Any) -> dict[str, Any]:
    """The schema of a type, for a record a reference to its schema, which `_components` makes only for the document."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return {"$ref": _REF.format(name=kind.__name__)}
    return msgspec.json.schema_components([kind], ref_template=_REF)[0][0]


def install_openapi(app: FastAPI, open_paths: frozenset[str] = frozenset()) -> None:
    """Complete the OpenAPI document that FastAPI makes from the routes."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _document(app, open_paths)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI's documentation says


def _document(app: FastAPI, open_paths: frozenset[str]) -> dict[str, Any]:
    document = get_openapi(
        title=app.title, version=app.version, description=app.description, routes=app.routes, tags=app.openapi_tags
    )
    for path, operations in document["paths"].items():
        for of_route in operations.values():
            of_route["security"] = [] if path in open_paths else [{"key": []}, {}]
            # FastAPI makes a summary of the name of a function.
            of_route["summary"] = (
                " ".join(of_route.get("description", of_route["summary"]).split()).partition(". ")[0].rstrip(".")
            )
            _describe_path_parameters(of_route)
    document["components"] = {
        "schemas": _components(set(_references(document["paths"]))),
        "securitySchemes": {
            "key": {
                "type": "http",
                "scheme": "bearer",
                "description": "API key, if the server has keys; see rewardserve keys",
            }
        },
    }
    return document


def _components(names: set[str]) -> dict[str, Any]:
    """The schemas of the records with these names, and of their parts."""
    known = sorted(_subclasses(msgspec.Struct), key=lambda each: each.__module__.startswith(_RECORDS))
    records = {each.__name__: each for each in known}
    schemas = msgspec.json.schema_components([records[name] for name in sorted(names)], ref_template=_REF)[1]
    for name, schema in schemas.items():
        record = records[name]
        if examples := getattr(record, "EXAMPLES", ()):
            schema["examples"] = list(examples)
        if further := getattr(record, "FURTHER_FIELDS", None):
            schema["additionalProperties"] = dict(further)
    return schemas


def _subclasses(record: type[Any]) -> Iterator[type[Any]]:
    for each in record.__subclasses__():
        yield each
        yield from _subclasses(each)


def _references(part: Any) -> Iterator[str]:
    """The names of the records that a part of the document refers to."""
    if isinstance(part, Mapping):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"].rpartition("/")[2]
        part = part.values()
    elif not isinstance(part, list):
        return
    for each in part:
        yield from _references(each)


def _describe_path_parameters(of_route: dict[str, Any]) -> None:
    # FastAPI adds its validation error to every route with a path parameter; here these are strings, which are always valid.
    if "HTTPValidationError" in str(of_route["responses"].get("422", {}).get("content")):
        del of_route["responses"]["422"]
    for parameter in of_route.get("parameters", ()):
        if parameter["in"] == "path":
            parameter["description"], parameter["example"] = _IN_PATH[parameter["name"]]

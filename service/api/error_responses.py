"""Render every error in one JSON shape: `{"error": {"code", "message", ...numbers}}`.

`FRAMEWORK_CODES` has the codes of the framework's errors; all other errors have their code and status.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from http import HTTPStatus

from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.responses import Response

from rewardserve.model.text.nearest_word import CUTOFF_OF_NAMES, nearest_word
from rewardserve.service.api.replies import json_response
from rewardserve.service.api.schemas.errors import ErrorOut, ErrorReply, error_out
from rewardserve.service.errors import Overloaded, RequestRefused, ServiceError, ShuttingDown, Unauthorized

_MAX_SUGGESTED_CHARS = 60
"""Longer paths are not compared with those of the routes."""

FRAMEWORK_CODES: dict[int, str] = {404: "not_found", 405: "method_not_allowed"}


def error_response(error: ServiceError, status: int | None = None) -> Response:
    """Render an error, with `Retry-After` if it has one."""
    headers: dict[str, str] = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(math.ceil(error.retry_after_s))
    if isinstance(error, ShuttingDown):
        headers["connection"] = "close"  # so that the client's next connection reaches another replica
    if isinstance(error, Unauthorized):
        headers["www-authenticate"] = "Bearer"
    body = ErrorReply(error_out(error.code, error.message, error.details))
    return json_response(body, status or error.status, headers)


def internal_error_response() -> Response:
    """Render a bug in the server, without its details."""
    return error_response(ServiceError("this is a bug in the server; see the request id in its log"))


def request_error_response(error: RequestRefused, overload_status: int) -> Response:
    """Render the refusal of a request."""
    return error_response(error, overload_status if isinstance(error, Overloaded) else None)


def _nearest_route(path: str, methods: Mapping[str, Collection[str]]) -> str:
    """Suggest the route that a path probably means, with its methods. The message never quotes the path itself."""
    if len(path) > _MAX_SUGGESTED_CHARS:
        return ""
    near = nearest_word(path.rstrip("/"), methods, CUTOFF_OF_NAMES)
    return f"did you mean {_in_words(methods[near])} {near}? Else " if near else ""


def _in_words(methods: Collection[str]) -> str:
    return " or ".join(sorted({*methods} - {"HEAD"}))


def install_error_handlers(app: FastAPI, overload_status: int, methods: Mapping[str, Collection[str]]) -> None:
    """Render `RequestRefused`, the framework's errors and bugs in the JSON shape of this module.

    `methods` are those of each path: for a path with several routes the framework lists those of the first route only.
    """

    async def refused(_request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestRefused)
        return request_error_response(error, overload_status)

    async def framework(request: Request, error: Exception) -> Response:
        assert isinstance(error, StarletteHTTPException)
        code = FRAMEWORK_CODES.get(error.status_code, "http_error")
        message = f"{HTTPStatus(error.status_code).phrase}: {request.method} on this path; see /docs"
        headers = {name.lower(): value for name, value in (error.headers or {}).items()}
        known = request.scope["state"]["route"]
        if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and known is not None and known.path in methods:
            headers["allow"] = ", ".join(sorted(methods[known.path]))
            message = f"this route does not accept {request.method}: send {_in_words(methods[known.path])}; see /docs"
        elif error.status_code == HTTPStatus.NOT_FOUND and known is None:
            message = f"no route has this path; {_nearest_route(request.url.path, methods)}see /docs"
        return json_response(ErrorReply(ErrorOut(code, message)), error.status_code, headers)

    async def bug(_request: Request, _error: Exception) -> Response:
        return internal_error_response()

    app.add_exception_handler(Exception, bug)  # starlette re-raises it, and `RequestLogMiddleware` records it
    app.add_exception_handler(RequestRefused, refused)
    app.add_exception_handler(StarletteHTTPException, framework)

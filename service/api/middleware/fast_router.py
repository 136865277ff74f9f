"""Call the scoring routes without FastAPI's dispatch.

They use no dependencies or response models, which would take a tenth of the time of every request.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from fastapi import APIRouter, Request
from fastapi.routing import APIRoute
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from rewardserve.service.api.error_responses import request_error_response
from rewardserve.service.api.headers import header
from rewardserve.service.api.http.load_shedder import LoadShedder
from rewardserve.service.api.middleware.idempotency import BlockedRuns, Idempotency
from rewardserve.service.api.route_policy import RouteInfo
from rewardserve.service.clock import Clock
from rewardserve.service.errors import Overloaded, RequestRefused

Endpoint = Callable[[Request], Awaitable[Response]]


class _BufferedRequest(Request):
    """A request whose body is read without a generator."""

    _content: bytes | None = None

    async def body(self) -> bytes:
        """Read the body. `BodyLimitMiddleware` raises if the client disconnects."""
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


class FastRouter:
    """Call the endpoints of POST on these routes; pass all other requests, also with wrong methods, to the framework."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        routers: Sequence[APIRouter],
        clock: Clock,
        overload_status: int,
        load_shedder: LoadShedder,
        blocked_runs: BlockedRuns | None = None,
    ) -> None:
        self._app = app
        routes = [route for router in routers for route in router.routes if isinstance(route, APIRoute)]
        self._endpoints: dict[str, Endpoint] = {route.path_format: route.endpoint for route in routes}
        self._overload_status = overload_status
        self._load_shedder = load_shedder
        self._idempotency = Idempotency(clock, blocked_runs=blocked_runs)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or pass on."""
        known: RouteInfo | None = scope["state"]["route"] if scope["type"] == "http" else None
        endpoint = None if known is None else self._endpoints.get(known.path)
        if known is None or endpoint is None or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        if known.pattern is not None:
            scope["path_params"] = known.parameters(scope)
        try:
            response = await self._idempotency.run_once(_BufferedRequest(scope, receive), endpoint)
        except RequestRefused as error:
            response = request_error_response(error, self._overload_status)
            if isinstance(error, Overloaded):
                self._load_shedder.on_overloaded(int(header(scope, b"content-length") or 0), response)
        await response(scope, receive, send)

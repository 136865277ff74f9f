"""Request log: every request gets an id, a record for log and metrics, and a response even if its route fails.

Pure ASGI. Knows nothing of bodies and scores.
"""

from __future__ import annotations

import os
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rewardserve.service.api.error_responses import internal_error_response
from rewardserve.service.api.events import HttpEvents, RequestRecord
from rewardserve.service.api.headers import header
from rewardserve.service.api.route_policy import RoutePolicy
from rewardserve.service.clock import Clock

_ID_HEADER = b"x-request-id"
_VALID_ID = re.compile(rb"[\x21-\x7e]{1,128}")


class RequestLogMiddleware:
    """The outermost middleware. Gives every request an id, its route, a record, and a 500 response for a bug.

    Paths without a route share one label, since a port scan would otherwise fill the metrics registry.
    """

    def __init__(self, app: ASGIApp, *, route_policy: RoutePolicy, clock: Clock, events: HttpEvents) -> None:
        self._app = app
        self._route_policy = route_policy
        self._clock = clock
        self._events = events

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run the application and record the request. Other scopes than HTTP are passed on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_at = self._clock.now()
        record = RequestRecord(request_id(header(scope, _ID_HEADER)), scope["method"], "other")
        state = scope.setdefault("state", {})

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (_ID_HEADER, record.request_id.encode())]
            await send(message)

        try:
            info = state["route"] = self._route_policy.find(scope)
            if info is not None:  # an unknown path may hold any text, so it is not recorded
                record.route = info.path
                if record.method == "HEAD" and "HEAD" in info.methods:
                    scope = {**scope, "method": "GET"}  # RFC 9110, 9.3.2; uvicorn omits the body
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            record.bug = error
            if not record.status:
                await internal_error_response()(scope, receive, send_with_id)
        finally:
            record.seconds = self._clock.now() - started_at
            # The name of the key, never the key.
            named = {"key": state["key"]} if "key" in state else {}
            record.fields = {**state.get("log_fields", {}), **named}
            self._events.on_request(record)


def request_id(offered_id: bytes | None) -> str:
    """Return the id that the client sent, if it is valid, else a new one."""
    return offered_id.decode() if offered_id and _VALID_ID.fullmatch(offered_id) else os.urandom(16).hex()

"""What happens around every request: its id, its key, its line in log and metrics.

Pure ASGI, each a callable around the next. Knows nothing of bodies and scores.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.api.headers import header
from service.api.problems import internal, problem
from service.clock import Clock
from service.errors import Unauthorized

_ID_HEADER = b"x-request-id"
_TIDY_ID = re.compile(rb"[\x21-\x7e]{1,128}")


@dataclass(slots=True)
class RequestSeen:
    """One answered request, for the access log and the metrics. `facts` come from the route."""

    request_id: str
    method: str
    route: str
    status: int = 0
    seconds: float = 0.0
    facts: Mapping[str, Any] = field(default_factory=dict)
    bug: Exception | None = None


class Witness:
    """Outermost. Gives every request an id, an end and a record; a bug becomes a 500 in our shape.

    `routes` are the paths that exist; all others share one label, or a port scan would fill the registry.
    """

    def __init__(
        self, app: ASGIApp, *, routes: frozenset[str], clock: Clock, tell: Callable[[RequestSeen], None]
    ) -> None:
        self._app = app
        self._routes = routes
        self._clock = clock
        self._tell = tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on whatever is no HTTP."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_at = self._clock.now()
        seen = self._begin(scope)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (_ID_HEADER, seen.request_id.encode())]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            seen.bug = error
            if not seen.status:
                await internal()(scope, receive, send_with_id)
        finally:
            seen.seconds = self._clock.now() - started_at
            seen.facts = scope["state"].get("facts", {})
            self._tell(seen)

    def _begin(self, scope: Scope) -> RequestSeen:
        path = scope["path"]
        scope.setdefault("state", {})
        # A path that we do not know may hold anything, so it is not written down.
        return RequestSeen(
            request_id(header(scope, _ID_HEADER)), scope["method"], path if path in self._routes else "other"
        )


def request_id(asked: bytes | None) -> str:
    """The one that the caller gave, if it is tidy, else a new one."""
    return asked.decode() if asked and _TIDY_ID.fullmatch(asked) else os.urandom(16).hex()


class KeyCheck:
    """Lets in who brings one of the keys. Without keys, everybody."""

    def __init__(self, app: ASGIApp, *, keys: frozenset[str], open_paths: frozenset[str]) -> None:
        self._app = app
        self._digests = tuple(_digest(key.encode()) for key in keys)
        self._open_paths = open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse with 401, or pass on."""
        if scope["type"] != "http" or not self._digests or scope["path"] in self._open_paths or self._holds(scope):
            await self._app(scope, receive, send)
        else:
            await problem(
                Unauthorized("send a valid key as Authorization: Bearer KEY, or in the URL as http://:KEY@host/")
            )(scope, receive, send)

    def _holds(self, scope: Scope) -> bool:
        offered = _digest(_key(header(scope, b"authorization") or b""))
        # Every key is compared, in constant time, so that the time of an answer tells nothing.
        matches = [hmac.compare_digest(offered, ours) for ours in self._digests]
        return any(matches)


def _key(authorization: bytes) -> bytes:
    """What stands after `Bearer`, or what `http://:KEY@host/` or `http://KEY@host/` makes of a URL; else nothing."""
    scheme, _, rest = authorization.partition(b" ")
    if scheme.lower() == b"bearer":
        return rest.strip()
    if scheme.lower() != b"basic":
        return b""
    try:
        user, _, password = base64.b64decode(rest.strip(), validate=True).partition(b":")
    except ValueError:
        return b""
    return password or user


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()

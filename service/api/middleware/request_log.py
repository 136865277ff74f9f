"""What happens around every request: its id, its key, its line in log and metrics.

Pure ASGI, each a callable around the next. Knows nothing of bodies and scores.
"""

from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from rewardserve.service.api.error_responses import internal, problem
from rewardserve.service.api.headers import header
from rewardserve.service.api.middleware.host_policy import Sites
from rewardserve.service.api.route_policy import Access, Known, check_path
from rewardserve.service.api.routes.pages import CHALLENGE, is_page
from rewardserve.service.auth.api_keys import Key, KeyRing
from rewardserve.service.auth.rate_limits import UNLIMITED, RateLimiter, set_current_limiter
from rewardserve.service.clock import Clock
from rewardserve.service.errors import AdminNeedsKey, Forbidden, RequestRefused, Unauthorized

_ID_HEADER = b"x-request-id"
_NO_ROUTE = "score"
"""The scope that is needed to be told that a path is no route's."""

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
    """Outermost. Gives every request an id, its route, an end and a record; a bug becomes a 500 in our shape.

    Paths that are no route's share one label, or a port scan would fill the registry.
    """

    def __init__(self, app: ASGIApp, *, access: Access, clock: Clock, tell: Callable[[RequestSeen], None]) -> None:
        self._app = app
        self._access = access
        self._clock = clock
        self._tell = tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on whatever is no HTTP."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started_at = self._clock.now()
        seen = RequestSeen(request_id(header(scope, _ID_HEADER)), scope["method"], "other")
        state = scope.setdefault("state", {})

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                seen.status = message["status"]
                message["headers"] = [*message.get("headers", ()), (_ID_HEADER, seen.request_id.encode())]
            await send(message)

        try:
            known = state["route"] = self._access.find(scope)
            if known is not None:  # otherwise the path may hold anything, so it is not written down
                seen.route = known.path
                if seen.method == "HEAD" and "HEAD" in known.methods:
                    scope = {**scope, "method": "GET"}  # RFC 9110, 9.3.2; the protocol sends no body of it
            await self._app(scope, receive, send_with_id)
        except Exception as error:
            seen.bug = error
            if not seen.status:
                await internal()(scope, receive, send_with_id)
        finally:
            seen.seconds = self._clock.now() - started_at
            # The name of the key, never the key.
            named = {"key": state["key"]} if "key" in state else {}
            seen.facts = {**state.get("facts", {}), **named}
            self._tell(seen)


def request_id(asked: bytes | None) -> str:
    """The one that the caller gave, if it is tidy, else a new one."""
    return asked.decode() if asked and _TIDY_ID.fullmatch(asked) else os.urandom(16).hex()


class KeyCheck:
    """Lets in who brings a key that is good for what he asks. Without keys, everybody, but for administration."""

    def __init__(
        self, app: ASGIApp, *, ring: Callable[[], KeyRing], is_loopback: bool, sites: Sites, clock: Clock
    ) -> None:
        self._app = app
        self._ring = ring
        self._is_loopback = is_loopback
        self._sites = sites
        self._clock = clock
        self._limiters: dict[str, RateLimiter] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse with 401, 403 or 429, or pass on."""
        try:
            if scope["type"] == "http":
                self._check(scope, scope["state"]["route"])
        except RequestRefused as error:
            refused = problem(error)
            if isinstance(error, Unauthorized) and is_page(scope["path"]):
                refused.headers["www-authenticate"] = CHALLENGE  # a browser asks for nothing else
            await refused(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _check(self, scope: Scope, route: Known | None) -> None:
        if route is None or route.pattern is not None:
            check_path(scope)
        ring = self._ring()
        if not ring.is_required:
            self._sites.check(scope)
            if route is not None and route.is_admin:
                self._check_is_here(scope)
            return
        needed = _NO_ROUTE if route is None else route.scope
        if needed is None:
            return
        key = ring.find(_key(header(scope, b"authorization") or b""))
        if key is None:
            raise Unauthorized("send a valid key as Authorization: Bearer KEY, or in the URL as http://:KEY@host/")
        _check_is_own_page(scope)
        scope["state"]["key"], scope["state"]["caller"] = key.name, ring.caller(key)
        if needed not in key.scopes:
            raise Forbidden(f"this needs a key with the scope {needed}: see rewardserve keys", scope=needed)
        limiter = self._limiter_of(key) if key.limits != UNLIMITED else None
        if limiter is not None:
            limiter.take("requests", 1)
        # Said for everybody: the task of a pipelined request begins in the context of the one before it.
        set_current_limiter(limiter)

    def _check_is_here(self, scope: Scope) -> None:
        # A page that a browser on this machine shows can send requests to it too; they have an origin.
        if not self._is_loopback or header(scope, b"origin") is not None:
            raise AdminNeedsKey(
                "without keys only programs on the server's own machine may do this: set REWARD_KEYS_FILE"
            )

    def _limiter_of(self, key: Key) -> RateLimiter:
        """What the key has taken of late, also where the file was read again meanwhile."""
        limiter = self._limiters.get(key.name)
        if limiter is None or limiter.limits != key.limits:
            limiter = self._limiters[key.name] = RateLimiter(key.limits, self._clock)
        return limiter


def _check_is_own_page(scope: Scope) -> None:
    """Raise `Forbidden` for a request that a page of another origin has sent.

    A browser that has asked for a key adds it to every request to this server, also to those of other people's pages. Only
    browsers send an origin, and none lets a page choose it.
    """
    origin = header(scope, b"origin")
    if origin is None:
        return
    host = header(scope, b"host") or b""
    if (header(scope, b"authorization") or b"")[:6].lower() == b"basic " and origin.partition(b"://")[2] != host:
        raise Forbidden("a page of another origin has sent this with a key that a browser remembers: send it as Bearer")


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

"""Authentication: the API key of a request, its scope, and its rate limit.

Pure ASGI. Knows nothing of bodies and scores.
"""

from __future__ import annotations

import base64

from starlette.types import ASGIApp, Receive, Scope, Send

from rewardserve.service.api.error_responses import error_response
from rewardserve.service.api.headers import header
from rewardserve.service.api.middleware.host_policy import HostPolicy
from rewardserve.service.api.route_policy import RouteInfo, check_path
from rewardserve.service.api.routes.pages import CHALLENGE, is_page
from rewardserve.service.auth.api_keys import ApiKey, ApiKeys, ApiKeysFile
from rewardserve.service.auth.rate_limits import UNLIMITED, RateLimiter, set_current_limiter
from rewardserve.service.clock import Clock
from rewardserve.service.errors import AdminNeedsKey, Forbidden, RequestRefused, Unauthorized

_UNKNOWN_ROUTE_SCOPE = "score"
"""The scope that is needed to be told that a path is no route's."""


class AuthMiddleware:
    """Accept requests with a key that has the scope of their route. Without keys, accept all requests but administration."""

    def __init__(
        self, app: ASGIApp, *, api_keys: ApiKeys | ApiKeysFile, is_loopback: bool, host_policy: HostPolicy, clock: Clock
    ) -> None:
        self._app = app
        self._api_keys = api_keys
        self._is_loopback = is_loopback
        self._host_policy = host_policy
        self._clock = clock
        self._limiters: dict[str, RateLimiter] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse with 401, 403 or 429, or pass on."""
        try:
            if scope["type"] == "http":
                self._check(scope, scope["state"]["route"])
        except RequestRefused as error:
            refused = error_response(error)
            if isinstance(error, Unauthorized) and is_page(scope["path"]):
                refused.headers["www-authenticate"] = CHALLENGE  # a browser asks for nothing else
            await refused(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _check(self, scope: Scope, route: RouteInfo | None) -> None:
        if route is None or route.pattern is not None:
            check_path(scope)
        api_keys = self._api_keys.current()
        if not api_keys.is_required:
            self._host_policy.check(scope)
            if route is not None and route.is_admin:
                self._check_local(scope)
            return
        needed = _UNKNOWN_ROUTE_SCOPE if route is None else route.scope
        if needed is None:
            return
        key = api_keys.find(_offered_key(header(scope, b"authorization") or b""))
        if key is None:
            raise Unauthorized("send a valid key as Authorization: Bearer KEY, or in the URL as http://:KEY@host/")
        _check_same_origin(scope)
        scope["state"]["key"], scope["state"]["permissions"] = key.name, api_keys.permissions(key)
        if needed not in key.scopes:
            raise Forbidden(f"this needs a key with the scope {needed}: see rewardserve keys", scope=needed)
        limiter = self._limiter_of(key) if key.limits != UNLIMITED else None
        if limiter is not None:
            limiter.take("requests", 1)
        # Set for every request: the task of a pipelined request begins in the context of the one before it.
        set_current_limiter(limiter)

    def _check_local(self, scope: Scope) -> None:
        # A page that a browser on this machine shows can send requests to it too; they have an origin.
        if not self._is_loopback or header(scope, b"origin") is not None:
            raise AdminNeedsKey(
                "without keys only programs on the server's own machine may do this: set REWARD_KEYS_FILE"
            )

    def _limiter_of(self, key: ApiKey) -> RateLimiter:
        """The limiter of a key, also where the file was read again meanwhile."""
        limiter = self._limiters.get(key.name)
        if limiter is None or limiter.limits != key.limits:
            limiter = self._limiters[key.name] = RateLimiter(key.limits, self._clock)
        return limiter


def _check_same_origin(scope: Scope) -> None:
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


def _offered_key(authorization: bytes) -> bytes:
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

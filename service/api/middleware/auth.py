"""Authentication: check the API key of a request, its scope and its rate limit.

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
"""The scope needed to get a 404 for a path without a route."""


class AuthMiddleware:
    """Accept requests with a key that has the scope of their route. On a server without keys, accept all but admin requests."""

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
                refused.headers["www-authenticate"] = CHALLENGE  # browsers show a login dialog for no other scheme
            await refused(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _check(self, scope: Scope, route: RouteInfo | None) -> None:
        if route is None or route.pattern is not None:
            check_path(scope)
        api_keys = self._api_keys.current()
        if not api_keys.is_required:
            self._host_policy.check(scope)
            scope["state"]["is_admin"] = is_local = self._is_local(scope)
            if route is not None and route.is_admin and not is_local:
                raise AdminNeedsKey(
                    "without keys only programs on the machine of the server may use admin routes: set REWARD_KEYS_FILE"
                )
            return
        needed = _UNKNOWN_ROUTE_SCOPE if route is None else route.scope
        if needed is None:
            return
        key = api_keys.find(_offered_key(header(scope, b"authorization") or b""))
        if key is None:
            raise Unauthorized("send a valid key as Authorization: Bearer KEY, or in the URL as http://:KEY@host/")
        _check_same_origin(scope)
        scope["state"]["key"], scope["state"]["permissions"] = key.name, api_keys.permissions(key)
        scope["state"]["is_admin"] = "admin" in key.scopes
        if needed not in key.scopes:
            raise Forbidden(f"this route needs a key with the scope {needed}: see rewardserve keys", scope=needed)
        limiter = self._limiter_of(key) if key.limits != UNLIMITED else None
        if limiter is not None:
            limiter.take("requests", 1)
        # Set for every request: the task of a pipelined request inherits the context of the previous request.
        set_current_limiter(limiter)

    def _is_local(self, scope: Scope) -> bool:
        # A web page in a browser on this machine can send requests to the server too; these have an origin.
        return self._is_loopback and header(scope, b"origin") is None

    def _limiter_of(self, key: ApiKey) -> RateLimiter:
        """Return the limiter of a key; a new one if its limits in the file have changed."""
        limiter = self._limiters.get(key.name)
        if limiter is None or limiter.limits != key.limits:
            limiter = self._limiters[key.name] = RateLimiter(key.limits, self._clock)
        return limiter


def _check_same_origin(scope: Scope) -> None:
    """Raise `Forbidden` for a request from a page of another origin.

    A browser that has a key from its login dialog adds it to every request to this server, also to those of pages of other
    sites. Only browsers send an origin, and a page cannot choose it.
    """
    origin = header(scope, b"origin")
    if origin is None:
        return
    host = header(scope, b"host") or b""
    if (header(scope, b"authorization") or b"")[:6].lower() == b"basic " and origin.partition(b"://")[2] != host:
        raise Forbidden(
            "a page of another origin has sent this request with the key from the browser's login: send it as Bearer"
        )


def _offered_key(authorization: bytes) -> bytes:
    """Return the key after `Bearer`, or that of a URL `http://:KEY@host/` or `http://KEY@host/`; empty if there is none."""
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

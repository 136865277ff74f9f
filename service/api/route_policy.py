"""The scope that a key must have for a route, decided by the route that a path matches, never by the spelling of the path.

The table is built from the routes, in their order; `check_same_route` verifies that the framework calls the route that was
found. A path without a route needs the scope `score`, and is answered with 404.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

from starlette._utils import get_route_path
from starlette.requests import Request
from starlette.routing import BaseRoute, Route
from starlette.types import Scope

from rewardserve.service.api.names import is_printable
from rewardserve.service.errors import InvalidPath

METRICS = "/metrics"
ACKNOWLEDGE = "/tripwires/{run:path}/{wire}/ack"
"""Unblocks a run, so the key of the run must not be able to call it."""

DETAILS = "/tripwires/{run:path}/details"
HISTORY = "/tripwires/{run:path}/history"
ATTRIBUTION = "/tripwires/{run:path}/attribution"
"""Shows texts of a run, which a key that scores must not be able to read."""

OPEN_PATHS: frozenset[str] = frozenset({"/livez", "/readyz", "/health", METRICS, "/v2/health/live", "/v2/health/ready"})
"""Paths that need no key: orchestrators and Prometheus have none."""

CONSOLE = "/console"
"""The console has sessions, which its routes check."""

_ADMIN = "/admin/"
_REVIEW = "/review/"


@dataclass(frozen=True, slots=True)
class RouteInfo:
    """A route: its path with parameter names, its methods, and the scope that a key must have; None: no key is needed.

    `pattern` matches its paths if it has parameters. `is_admin`: it changes the loaded models, or shows texts.
    """

    path: str
    methods: frozenset[str]
    scope: str | None
    pattern: re.Pattern[str] | None = None
    is_admin: bool = False

    def parameters(self, scope: Scope) -> dict[str, str]:
        """Return the path parameters of a request."""
        found = None if self.pattern is None else self.pattern.match(get_route_path(scope))
        return {} if found is None else found.groupdict()


class RoutePolicy:
    """All routes of an application. Raise `TypeError` for a route without a path, such as a mounted application."""

    def __init__(self, routes: Iterable[BaseRoute], metrics_need_key: bool = False) -> None:
        self._exact: dict[str, RouteInfo] = {}
        self._patterns: list[tuple[re.Pattern[str], RouteInfo]] = []
        for route in routes:
            if not isinstance(route, Route):
                raise TypeError(f"{route!r} is not a route with a path")
            scope, methods = _scope_of(route.path, metrics_need_key), frozenset(route.methods or ())
            methods |= {"HEAD"} if "GET" in methods else set()
            is_admin = route.path.startswith((_ADMIN, _REVIEW)) or route.path in (HISTORY, ATTRIBUTION)
            if route.param_convertors:
                info = RouteInfo(route.path_format, methods, scope, route.path_regex, is_admin)
                self._patterns.append((route.path_regex, info))
            else:
                methods |= self._exact[route.path].methods if route.path in self._exact else set()
                self._exact[route.path] = RouteInfo(route.path, methods, scope, is_admin=is_admin)
        if any(pattern.match(path) for pattern, _ in self._patterns for path in self._exact):
            raise TypeError("a path with parameters matches another route")

    def find(self, scope: Scope) -> RouteInfo | None:
        """Find the route of a request as the framework does: the first with its path and method, else with its path."""
        path: str = scope["path"]
        if scope.get("root_path"):
            path = get_route_path(scope)
        info = self._exact.get(path)
        if info is not None:
            return info
        found = [info for pattern, info in self._patterns if pattern.match(path)]
        return next((info for info in found if scope["method"] in info.methods), found[0] if found else None)


def check_same_route(request: Request) -> None:
    """Raise `RuntimeError` if the framework calls another route than the one whose scope was checked, which is a bug."""
    info: RouteInfo | None = request.scope["state"]["route"]
    if info is None or info.path != request.scope["route"].path_format:
        raise RuntimeError("the called route is not the one whose scope was checked")


def _scope_of(path: str, metrics_need_key: bool) -> str | None:
    if path == METRICS:
        return "metrics" if metrics_need_key else None
    if path in OPEN_PATHS or path == CONSOLE or path.startswith(CONSOLE + "/"):
        return None
    if path.startswith(_REVIEW):
        return "review"
    return "admin" if path in (ACKNOWLEDGE, HISTORY, ATTRIBUTION) or path.startswith(_ADMIN) else "score"


def check_path(scope: Scope) -> None:
    """Raise `InvalidPath` for non-printable characters. Not needed for a path that equals that of a route."""
    if not is_printable(scope["path"]):
        raise InvalidPath("the path has a non-printable character, as such or percent-encoded")
    if "\ufffd" in scope["path"]:  # the replacement of bytes that are not UTF-8
        try:
            unquote_to_bytes(scope.get("raw_path", b"")).decode()
        except UnicodeDecodeError:
            raise InvalidPath("the path is not UTF-8") from None

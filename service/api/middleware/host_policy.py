"""Check hosts and origins, against requests that a page of another site sends through a browser. Used only without keys.

A web page can send requests to every address that its browser reaches; these have the origin of the page. A site whose name
resolves to this address (DNS rebinding) can read the responses too; its requests have the name of the site as Host. An address as
Host is safe, since no site can own it. Programs send no origin, and as Host the address to which they connect.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Sequence
from ipaddress import ip_address

from starlette.types import Scope

from rewardserve.service.errors import HostNotAllowed, OriginNotAllowed

_MAX_CACHED_HOSTS = 256
_BRACKETS = re.compile(r"\[([^\[\]]*)\](?::\d*)?")


class HostPolicy:
    """Host names of this server, and origins of pages that may send requests. `is_loopback`: reachable from this machine only.

    `hosts` are names; `*.NAME` are all its subdomains, `*` is any. `origins` are as browsers send them; `*` is any.
    """

    def __init__(self, *, is_loopback: bool, hosts: Sequence[str] = (), origins: Sequence[str] = ()) -> None:
        self._is_loopback = is_loopback
        names = {"localhost", _normalized(socket.gethostname())} | {_normalized(host) for host in hosts}
        self._names = frozenset(name for name in names if not name.startswith("*"))
        self._suffixes = tuple(name[1:] for name in names if name.startswith("*."))
        self._is_any_host = "*" in hosts
        self._origins = frozenset(origin.lower().rstrip("/") for origin in origins)
        self._accepted_hosts: set[bytes] = set()

    def check(self, scope: Scope) -> None:
        """Raise `HostNotAllowed` or `OriginNotAllowed`. HTTP/1.0 requests may have no host; browsers do not send them."""
        host, origin = None, None
        for name, value in scope["headers"]:
            if name == b"host":
                host = value
            elif name == b"origin":
                origin = value
        if host is not None and host not in self._accepted_hosts:
            self._check_host(host, scope)
        if origin is not None:
            self._check_origin(origin, host)

    def _check_host(self, host: bytes, scope: Scope) -> None:
        name = _normalized(_without_port(host.decode("latin-1")))
        server = scope.get("server")
        if not self._is_name(name) and (server is None or name != _normalized(str(server[0]))):
            raise HostNotAllowed(
                "without keys the Host header must be a name or an address of this server: add the name to REWARD_ALLOWED_HOSTS, "
                "or set REWARD_KEYS_FILE"
            )
        if len(self._accepted_hosts) < _MAX_CACHED_HOSTS:
            self._accepted_hosts.add(host)

    def _is_name(self, name: str) -> bool:
        if self._is_any_host or name in self._names or name.endswith(self._suffixes):
            return True
        try:
            address = ip_address(name)
        except ValueError:
            return False
        return address.is_loopback or not (self._is_loopback or address.is_unspecified)

    def _check_origin(self, origin: bytes, host: bytes | None) -> None:
        text = origin.decode("latin-1").lower()
        is_same = host is not None and text.partition("://")[2] == host.decode("latin-1").lower()
        if not is_same and text not in self._origins and "*" not in self._origins:
            raise OriginNotAllowed(
                "without keys pages of other sites may not send requests: add the origin to REWARD_ALLOWED_ORIGINS, or set "
                "REWARD_KEYS_FILE"
            )


def _normalized(name: str) -> str:
    return name.lower().rstrip(".")


def _without_port(host: str) -> str:
    found = _BRACKETS.fullmatch(host)
    return found[1] if found else host.partition(":")[0]

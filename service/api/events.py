"""Events of connections and requests, and the protocol of their receiver."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

ConnectionEnd = Literal["slow_head", "large_head", "slow_reader", "evicted", "limit_reached", "invalid_http"]
"""Reasons for which the server closes a connection."""


@dataclass(slots=True)
class RequestRecord:
    """One answered request, for the request log and the metrics. `fields` come from the route."""

    request_id: str
    method: str
    route: str
    status: int = 0
    seconds: float = 0.0
    fields: Mapping[str, Any] = field(default_factory=dict)
    bug: Exception | None = None


class HttpEvents(Protocol):
    """Receiver of the events of connections and requests."""

    def on_request(self, record: RequestRecord) -> None:
        """Record an answered request."""
        ...

    def on_rejected(self, path: str, status: int) -> None:
        """Record a request that was rejected before its body was read."""
        ...

    def on_connection_end(self, reason: ConnectionEnd) -> None:
        """Record a connection that the server has closed."""
        ...

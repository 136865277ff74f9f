"""Events of connections and requests, and the protocol of what is notified of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

ConnectionEnd = Literal["slow_head", "large_head", "slow_reader", "evicted", "limit_reached", "invalid_http"]
"""Why we ended a connection that its client did not."""


@dataclass(slots=True)
class RequestRecord:
    """One answered request, for the access log and the metrics. `fields` come from the route."""

    request_id: str
    method: str
    route: str
    status: int = 0
    seconds: float = 0.0
    fields: Mapping[str, Any] = field(default_factory=dict)
    bug: Exception | None = None


class HttpEvents(Protocol):
    """Is notified of what happens to connections and requests."""

    def on_request(self, record: RequestRecord) -> None:
        """A request was answered."""
        ...

    def on_rejected(self, path: str, status: int) -> None:
        """A request was rejected unread."""
        ...

    def on_connection_end(self, reason: ConnectionEnd) -> None:
        """The server has closed a connection."""
        ...

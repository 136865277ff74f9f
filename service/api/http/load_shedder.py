"""Reject requests before reading their body while the server is overloaded.

A refusal by admission costs almost as much as a reply: the body is read and its samples are built before the request is
refused. Under overload the server would do nothing else. The load shedder reads two headers only: it rejects a request whose
body is at least as large as the smallest one that admission has just refused.
"""

from __future__ import annotations

from typing import Protocol

from starlette.responses import Response

from rewardserve.service.api.events import HttpEvents


class AdmissionLoad(Protocol):
    """The part of admission that the load shedder reads."""

    @property
    def is_nearly_full(self) -> bool:
        """Whether nine tenths of the capacity are in use."""
        ...

    @property
    def n_released(self) -> int:
        """Number of requests that have released their capacity so far."""
        ...


class LoadShedder:
    """Reject requests from `on_overloaded` until admission releases capacity.

    `paths` are the routes whose requests may be rejected. `events` receive each rejection.
    """

    def __init__(self, paths: frozenset[str], admission: AdmissionLoad, events: HttpEvents) -> None:
        self._paths = {path.encode(): path for path in paths}
        self._admission = admission
        self._events = events
        self._min_rejected_bytes: float = float("inf")
        self._response: Response | None = None
        self._n_released = -1

    def on_overloaded(self, n_bytes: int, response: Response) -> None:
        """Record that admission has refused a request with a body of this size, and the response."""
        if self._admission.n_released != self._n_released:
            self._min_rejected_bytes, self._n_released = float("inf"), self._admission.n_released
        if n_bytes <= self._min_rejected_bytes:
            self._min_rejected_bytes, self._response = n_bytes, response

    @property
    def is_shedding(self) -> bool:
        """Whether some requests are rejected."""
        return self._response is not None

    def rejection_for(self, path: bytes, n_bytes: int) -> Response | None:
        """Return the response to a request that admission would probably refuse; None: let admission decide."""
        if self._response is None or n_bytes < self._min_rejected_bytes or path not in self._paths:
            return None
        if self._admission.n_released != self._n_released or not self._admission.is_nearly_full:
            self._response = None
            return None
        self._events.on_rejected(self._paths[path], self._response.status_code)
        return self._response

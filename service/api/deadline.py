"""Read the deadline of a request from the header `x-deadline-ms`."""

from __future__ import annotations

from starlette.requests import Request

from rewardserve.service.api.headers import header
from rewardserve.service.clock import Clock
from rewardserve.service.errors import InvalidRequest

DEADLINE_HEADER = "x-deadline-ms"


def read_deadline(request: Request, clock: Clock) -> float:
    """Return the deadline by `clock`, infinite without a header. It counts from the first call for a request.

    Raise `InvalidRequest`.
    """
    text = header(request.scope, DEADLINE_HEADER.encode())
    if text is None:
        return float("inf")
    # Eleven digits are three years; more is a mistake, and `int` of a very long text is slow.
    if not (text.isdigit() and len(text) <= 11):
        raise InvalidRequest(f"{DEADLINE_HEADER} must be a whole number of milliseconds", field=DEADLINE_HEADER)
    state = request.scope.setdefault("state", {})
    deadline: float = state.setdefault("deadline", clock.now() + int(text) / 1000)
    return deadline

"""Who is turned away before anything of a request is read: whoever asks for at least as much as somebody who just found no seat.

To refuse a request in the house costs most of what it costs to answer it: its body is read, its samples are made, and then there
is no seat. Under an overload that would be all that the server does. Here a refusal is a look at two headers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from starlette.responses import Response


class Seats(Protocol):
    """What the door asks of admission."""

    @property
    def is_nearly_full(self) -> bool:
        """Whether nine seats in ten are taken."""
        ...

    @property
    def n_left(self) -> int:
        """How many requests have given their seats back so far."""
        ...


class Door:
    """Open, until `found_no_seat`; and open again as soon as one seat has been given back.

    `paths` are those that may be closed. `tell` hears of everybody who is turned away: path and status.
    """

    def __init__(self, paths: frozenset[str], seats: Seats, tell: Callable[[str, int], None]) -> None:
        self._paths = {path.encode(): path for path in paths}
        self._seats = seats
        self._tell = tell
        self._smallest: float = float("inf")
        self._answer: Response | None = None
        self._n_left = -1

    def found_no_seat(self, n_bytes: int, answer: Response) -> None:
        """A request with a body of this size was given this answer."""
        if self._seats.n_left != self._n_left:
            self._smallest, self._n_left = float("inf"), self._seats.n_left
        if n_bytes <= self._smallest:
            self._smallest, self._answer = n_bytes, answer

    @property
    def is_open(self) -> bool:
        """Whether every request is let in."""
        return self._answer is None

    def turns_away(self, path: bytes, n_bytes: int) -> Response | None:
        """The answer to a request for which there can hardly be a seat; None: let it in and see."""
        if self._answer is None or n_bytes < self._smallest or path not in self._paths:
            return None
        if self._seats.n_left != self._n_left or not self._seats.is_nearly_full:
            self._answer = None
            return None
        self._tell(self._paths[path], self._answer.status_code)
        return self._answer

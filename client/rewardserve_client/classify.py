"""What an attempt means: take it, try again, make it smaller, or give it up. Pure.

A server that is asked twice under one key answers from memory and counts nothing twice, so whatever may pass is tried
again; what will be refused as long as the request is what it is, never.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from rewardserve_client.backoff import read_retry_after
from rewardserve_client.replies import BadAnswer, refused
from rewardserve_client.results import Failure

T = TypeVar("T")

MAY_PASS = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed: it came too slowly, there was no room, a server or proxy failed."""

TOO_LARGE = frozenset({"too_many_samples", "request_too_large", "body_too_large", "http_413"})
"""Codes of refusals that a smaller request does not meet."""

ROW_MAY_PASS = frozenset({"out_of_memory", "scorer_failed"})
"""Codes of single samples that may have a score a moment later."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back over the wire."""

    status: int
    body: bytes
    retry_after: str | None = None


@dataclass(frozen=True, slots=True)
class Broken:
    """Nothing came back. `is_servers`: the server is to blame, not our own queue for a connection."""

    reason: str
    is_servers: bool = True


Event = Answer | Broken


@dataclass(frozen=True, slots=True)
class Good(Generic[T]):
    """An answer that can be used."""

    value: T


@dataclass(frozen=True, slots=True)
class Refused:
    """The server will never take it."""

    status: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class TooLarge:
    """The server would take a smaller one."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class TryAgain:
    """It may pass."""

    reason: str
    retry_after_s: float | None = None
    is_servers: bool = True


Verdict = Good[T] | Refused | TooLarge | TryAgain


def judge(event: Event, read: Callable[[bytes], T]) -> Verdict[T]:
    """The verdict on one attempt. `read` makes a value of a good body, or raises `BadAnswer`."""
    if isinstance(event, Broken):
        return TryAgain(event.reason, is_servers=event.is_servers)
    if event.status == 200:
        try:
            return Good(read(event.body))
        except BadAnswer as error:
            return TryAgain(f"not an answer: {error}")
    failure = refused(event.body, event.status)
    if event.status in MAY_PASS:
        return TryAgain(f"{event.status} {failure.code}", read_retry_after(event.retry_after))
    if failure.code in TOO_LARGE:
        return TooLarge(failure)
    return Refused(event.status, failure)

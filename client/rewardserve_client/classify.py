"""What an attempt means: take it, try again, make it smaller, or give it up. Pure.

A server that is asked twice under one key answers from memory and counts nothing twice, so whatever may pass is tried
again; what will be refused as long as the request is what it is, never.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from rewardserve_client.backoff import parse_retry_after
from rewardserve_client.replies import InvalidReply, parse_error
from rewardserve_client.results import Failure

T = TypeVar("T")

RETRYABLE_STATUSES = frozenset({408, 429, 500, 502, 503, 504})
"""Statuses after which the same request may succeed: it came too slowly, there was no room, a server or proxy failed."""

SPLIT_CODES = frozenset({"too_many_samples", "request_too_large", "body_too_large", "http_413"})
"""Codes of refusals that a smaller request does not meet."""

RETRYABLE_SAMPLE_CODES = frozenset({"out_of_memory", "scorer_failed"})
"""Codes of single samples that may have a score a moment later."""


@dataclass(frozen=True, slots=True)
class HttpReply:
    """What came back over the wire."""

    status: int
    body: bytes
    retry_after: str | None = None


@dataclass(frozen=True, slots=True)
class TransportError:
    """Nothing came back. `is_servers`: the server is to blame, not our own queue for a connection."""

    reason: str
    is_server_fault: bool = True


AttemptResult = HttpReply | TransportError


@dataclass(frozen=True, slots=True)
class Success(Generic[T]):
    """An answer that can be used."""

    value: T


@dataclass(frozen=True, slots=True)
class Rejected:
    """The server will never take it."""

    status: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class TooLarge:
    """The server would take a smaller one."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Retry:
    """It may pass."""

    reason: str
    retry_after_s: float | None = None
    is_server_fault: bool = True


Outcome = Success[T] | Rejected | TooLarge | Retry


def classify(event: AttemptResult, read: Callable[[bytes], T]) -> Outcome[T]:
    """The outcome of one attempt. `read` makes a value of a good body, or raises `InvalidReply`."""
    if isinstance(event, TransportError):
        return Retry(event.reason, is_server_fault=event.is_server_fault)
    if event.status == 200:
        try:
            return Success(read(event.body))
        except InvalidReply as error:
            return Retry(f"not an answer: {error}")
    failure = parse_error(event.body, event.status)
    if event.status in RETRYABLE_STATUSES:
        return Retry(f"{event.status} {failure.code}", parse_retry_after(event.retry_after))
    if failure.code in SPLIT_CODES:
        return TooLarge(failure)
    return Rejected(event.status, failure)

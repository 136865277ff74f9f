"""Classify the outcome of an attempt: success, retry, split into smaller requests, or reject. Pure.

A server replays its reply to a repeated idempotency key and counts nothing twice, so every transient failure is
retried; a refusal that depends only on the request never is.
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
"""Statuses after which the same request may succeed: sent too slowly, overloaded, or a server or proxy failed."""

SPLIT_CODES = frozenset({"too_many_samples", "request_too_large", "body_too_large", "http_413"})
"""Error codes that a smaller request avoids."""

RETRYABLE_SAMPLE_CODES = frozenset({"out_of_memory", "scorer_failed"})
"""Error codes of single samples that may succeed on a retry."""


@dataclass(frozen=True, slots=True)
class HttpReply:
    """HTTP reply as received."""

    status: int
    body: bytes
    retry_after: str | None = None


@dataclass(frozen=True, slots=True)
class TransportError:
    """No reply was received. `is_server_fault` is False if no request was sent in time."""

    reason: str
    is_server_fault: bool = True


AttemptResult = HttpReply | TransportError


@dataclass(frozen=True, slots=True)
class Success(Generic[T]):
    """Valid reply."""

    value: T


@dataclass(frozen=True, slots=True)
class Rejected:
    """Permanent refusal of this request."""

    status: int
    failure: Failure


@dataclass(frozen=True, slots=True)
class TooLarge:
    """Refusal of this request for its size; a smaller one may be accepted."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Retry:
    """Transient failure: the same request may succeed later."""

    reason: str
    retry_after_s: float | None = None
    is_server_fault: bool = True


Outcome = Success[T] | Rejected | TooLarge | Retry


def classify(event: AttemptResult, read: Callable[[bytes], T]) -> Outcome[T]:
    """Classify one attempt. `read` parses a body of status 200, or raises `InvalidReply`."""
    if isinstance(event, TransportError):
        return Retry(event.reason, is_server_fault=event.is_server_fault)
    if event.status == 200:
        try:
            return Success(read(event.body))
        except InvalidReply as error:
            return Retry(f"invalid reply: {error}")
    failure = parse_error(event.body, event.status)
    if event.status in RETRYABLE_STATUSES:
        return Retry(f"{event.status} {failure.code}", parse_retry_after(event.retry_after))
    if failure.code in SPLIT_CODES:
        return TooLarge(failure)
    return Rejected(event.status, failure)

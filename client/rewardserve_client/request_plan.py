"""Plan the requests for one chunk: which server gets the next attempt, and when, until every item has a result.

A generator yields an `Attempt` or a `Wait` and receives the outcome. It opens no connection, does not sleep, and reads
only the clock that is passed in; `AsyncRewardClient` executes its steps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from rewardserve_client.backoff import Backoff, Jitter, pause_s
from rewardserve_client.chunks import Chunk, halves
from rewardserve_client.circuit_breaker import CircuitBreaker
from rewardserve_client.classify import (
    RETRYABLE_SAMPLE_CODES,
    AttemptResult,
    Rejected,
    Retry,
    Success,
    TooLarge,
    classify,
)
from rewardserve_client.errors import RequestRefused
from rewardserve_client.results import UNAVAILABLE, Failure
from rewardserve_client.routing import Order
from rewardserve_client.samples import Item, body

T = TypeVar("T")


class ItemResult(Protocol):
    """Result of one item."""

    @property
    def error(self) -> Failure | None:
        """Why the item has no number; None if it has one."""
        ...


R = TypeVar("R", bound=ItemResult)


@dataclass(frozen=True, slots=True)
class Attempt:
    """Send this request once. A repeated request carries the same idempotency key."""

    url: str
    path: str
    body: bytes | None
    key: str
    deadline: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Wait for this many seconds."""

    seconds: float


RequestPlan = Generator[Attempt | Wait, AttemptResult | None, T]


@dataclass(frozen=True, slots=True)
class ClientContext:
    """State and settings shared by all plans of a client. `on_attempt` gets the address, and the reason of a failure or None."""

    circuit: CircuitBreaker
    backoff: Backoff
    sample_retries: int
    now: Callable[[], float]
    jitter: Jitter
    new_key: Callable[[], str]
    on_attempt: Callable[[str, str | None], None] = lambda _url, _reason: None


@dataclass(frozen=True, slots=True)
class RequestSpec(Generic[R]):
    """Request of a call, apart from its items: path, head of the body, deadline, parser of the reply, record for a failure."""

    path: str
    head: bytes
    deadline: float
    read: Callable[[bytes, Sequence[Item]], list[R]]
    failed: Callable[[Item, Failure], R]


@dataclass(frozen=True, slots=True)
class DeadlineReached:
    """The deadline has passed. `reason` describes the last failures of servers, else why the client sent no request."""

    reason: str


def plan_chunk(chunk: Chunk, spec: RequestSpec[R], context: ClientContext) -> RequestPlan[list[R]]:
    """Yield the steps for one chunk; return one record an item, in order. Raise `RequestRefused`; other failures are records."""
    records = yield from _plan_chunk_once(chunk, spec, context)
    for n in range(context.sample_retries):
        positions = [i for i, r in enumerate(records) if r.error is not None and r.error.code in RETRYABLE_SAMPLE_CODES]
        pause = pause_s(n, None, spec.deadline - context.now(), context.backoff, context.jitter) if positions else None
        if pause is None:
            break
        yield Wait(pause)
        again = yield from _plan_chunk_once(Chunk(chunk.order, tuple(chunk.items[i] for i in positions)), spec, context)
        for i, record in zip(positions, again, strict=True):
            # Keep the earlier error: it is more specific than `unavailable`.
            if record.error is None or record.error.code != UNAVAILABLE:
                records[i] = record
    return records


def plan_attempts(
    order: Order, path: str, content: bytes | None, read: Callable[[bytes], T], deadline: float, context: ClientContext
) -> RequestPlan[Success[T] | Rejected | TooLarge | DeadlineReached]:
    """Send one request until a reply settles it: try every available server, then wait, then start over."""
    key, n_rounds, tried, hints = context.new_key(), 0, set[str](), list[float | None]()
    reasons: list[str] = []
    client_reason = "the deadline passed before a request was sent"  # reported only if no server had a fault
    while (left_s := deadline - context.now()) > 0:
        url = context.circuit.pick(order, tried, context.now())
        if url is None:
            pause = pause_s(n_rounds, _earliest_retry_s(hints), left_s, context.backoff, context.jitter)
            if pause is None:
                break
            yield Wait(pause)
            n_rounds, tried, hints = n_rounds + 1, set(), []
            continue
        tried.add(url)
        event = yield Attempt(url, path, content, key, deadline)
        assert event is not None
        outcome = classify(event, read)
        if not isinstance(outcome, Retry):
            context.circuit.record_success(url)
            context.on_attempt(url, None)
            return outcome
        hints.append(outcome.retry_after_s)
        if outcome.is_server_fault:
            context.on_attempt(url, outcome.reason)
            context.circuit.record_failure(url, context.now(), outcome.retry_after_s)
            reasons = _add_reason(reasons, f"{outcome.reason} ({url})")
        else:
            client_reason = outcome.reason
    return DeadlineReached("; before that ".join(reasons) or client_reason)


def _plan_chunk_once(chunk: Chunk, spec: RequestSpec[R], context: ClientContext) -> RequestPlan[list[R]]:
    """Plan as `plan_chunk`, without the retries of single samples."""
    order, items = chunk
    content = body(spec.head, items)
    end = yield from plan_attempts(
        order, spec.path, content, lambda answer: spec.read(answer, items), spec.deadline, context
    )
    if isinstance(end, Success):
        return end.value
    if isinstance(end, DeadlineReached):
        return [spec.failed(item, Failure(UNAVAILABLE, end.reason)) for item in items]
    if isinstance(end, Rejected):
        raise refusal_error(end, items)
    if len(items) == 1:
        return [spec.failed(items[0], end.failure)]
    first, second = halves(items)
    done = yield from _plan_chunk_once(Chunk(order, first), spec, context)
    rest = yield from _plan_chunk_once(Chunk(order, second), spec, context)
    return done + rest


def _earliest_retry_s(hints: Sequence[float | None]) -> float | None:
    """Shortest `Retry-After` of the servers of a round; None if one of them sent none."""
    known = [hint for hint in hints if hint is not None]
    return min(known) if len(known) == len(hints) else None


def _add_reason(reasons: list[str], reason: str) -> list[str]:
    """Newest reason first, and two earlier ones that differ: the last attempts may only have run out of time."""
    return [reason, *[r for r in reasons if r != reason][:2]]


_POSITION = re.compile(r"(?:samples|comparisons|groups)\[(\d+)\]")


def refusal_error(refused: Rejected, items: Sequence[Item] = ()) -> RequestRefused:
    """Build the exception, naming the offending sample by its index in the call, not in the request."""
    failure = refused.failure
    found = _POSITION.match(str(failure.details.get("field")))
    position = int(found.group(1)) if found else len(items)
    sample = items[position].position if position < len(items) else None
    return RequestRefused(refused.status, failure.code, failure.message, failure.details, sample)

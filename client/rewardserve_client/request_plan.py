"""The requests for one chunk: which server gets the next attempt, and when, until every item has a result.

A generator that says what to do and is told what came of it. It decides and does nothing: it opens no connection, waits
for nothing and reads no clock but the one it is handed. Whoever drives it does what it says.
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
    """What becomes of an item."""

    @property
    def error(self) -> Failure | None:
        """Why there is no number."""
        ...


R = TypeVar("R", bound=ItemResult)


@dataclass(frozen=True, slots=True)
class Attempt:
    """Send this, and say what came back. The same key stands for the same request, however often it is sent."""

    url: str
    path: str
    body: bytes | None
    key: str
    deadline: float


@dataclass(frozen=True, slots=True)
class Wait:
    """Do nothing for so long."""

    seconds: float


RequestPlan = Generator[Attempt | Wait, AttemptResult | None, T]


@dataclass(frozen=True, slots=True)
class ClientContext:
    """What every plan of a client shares. `on_attempt` gets the address of each attempt, and the reason if it failed."""

    circuit: CircuitBreaker
    backoff: Backoff
    sample_retries: int
    now: Callable[[], float]
    jitter: Jitter
    new_key: Callable[[], str]
    on_attempt: Callable[[str, str | None], None] = lambda _url, _reason: None


@dataclass(frozen=True, slots=True)
class RequestSpec(Generic[R]):
    """What is asked of every item of a call: how a body begins, how an answer is read, what stands for no answer."""

    path: str
    head: bytes
    deadline: float
    read: Callable[[bytes, Sequence[Item]], list[R]]
    failed: Callable[[Item, Failure], R]


@dataclass(frozen=True, slots=True)
class DeadlineReached:
    """The time is over. `reason` is what the last attempt met with."""

    reason: str


def plan_chunk(chunk: Chunk, spec: RequestSpec[R], context: ClientContext) -> RequestPlan[list[R]]:
    """One record an item, in order. Raise `RequestRefused`; whatever else happens is in the records."""
    records = yield from _plan_chunk_once(chunk, spec, context)
    for n in range(context.sample_retries):
        positions = [i for i, r in enumerate(records) if r.error is not None and r.error.code in RETRYABLE_SAMPLE_CODES]
        pause = pause_s(n, None, spec.deadline - context.now(), context.backoff, context.jitter) if positions else None
        if pause is None:
            break
        yield Wait(pause)
        again = yield from _plan_chunk_once(Chunk(chunk.order, tuple(chunk.items[i] for i in positions)), spec, context)
        for i, record in zip(positions, again, strict=True):
            # That nobody answers now says less than what was said before.
            if record.error is None or record.error.code != UNAVAILABLE:
                records[i] = record
    return records


def plan_attempts(
    order: Order, path: str, content: bytes | None, read: Callable[[bytes], T], deadline: float, context: ClientContext
) -> RequestPlan[Success[T] | Rejected | TooLarge | DeadlineReached]:
    """One request, sent until there is an answer that ends it: to every server that is up, then a pause, then again."""
    key, n_rounds, tried, hints = context.new_key(), 0, set[str](), list[float | None]()
    reasons: list[str] = []
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
        context.on_attempt(url, outcome.reason)
        if outcome.is_server_fault:
            context.circuit.record_failure(url, context.now(), outcome.retry_after_s)
        hints.append(outcome.retry_after_s)
        reasons = _add_reason(reasons, f"{outcome.reason} ({url})")
    return DeadlineReached("; before that ".join(reasons) or "the deadline passed before anything was sent")


def _plan_chunk_once(chunk: Chunk, spec: RequestSpec[R], context: ClientContext) -> RequestPlan[list[R]]:
    """As `plan_chunk`, but what may pass for a single item is left as it is."""
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
    """When the first of the servers of a round wants to be asked again; None where one of them names no time."""
    known = [hint for hint in hints if hint is not None]
    return min(known) if len(known) == len(hints) else None


def _add_reason(reasons: list[str], reason: str) -> list[str]:
    """The newest first, and two before that differ: the last attempts may only have had too little time."""
    return [reason, *[r for r in reasons if r != reason][:2]]


_POSITION = re.compile(r"(?:samples|comparisons)\[(\d+)\]")


def refusal_error(refused: Rejected, items: Sequence[Item] = ()) -> RequestRefused:
    """As an exception that names the offending sample by its place in the call, not in the request."""
    failure = refused.failure
    found = _POSITION.match(str(failure.details.get("field")))
    position = int(found.group(1)) if found else len(items)
    sample = items[position].position if position < len(items) else None
    return RequestRefused(refused.status, failure.code, failure.message, failure.details, sample)

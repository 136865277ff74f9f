"""The course of one chunk: whom to ask, what an answer means, when to ask again, until every item has a record.

A generator that says what to do and is told what came of it. It decides and does nothing: it opens no connection, waits
for nothing and reads no clock but the one it is handed. Whoever drives it does what it says.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from rewardserve_client.backoff import Backoff, Luck, pause_s
from rewardserve_client.chunks import Chunk, halves
from rewardserve_client.circuit_breaker import Circuit
from rewardserve_client.classify import ROW_MAY_PASS, Event, Good, Refused, TooLarge, TryAgain, judge
from rewardserve_client.errors import RequestRefused
from rewardserve_client.results import UNAVAILABLE, Failure
from rewardserve_client.routing import Order
from rewardserve_client.samples import Item, body

T = TypeVar("T")


class Record(Protocol):
    """What becomes of an item."""

    @property
    def error(self) -> Failure | None:
        """Why there is no number."""
        ...


R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class Ask:
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


Course = Generator[Ask | Wait, Event | None, T]


@dataclass(frozen=True, slots=True)
class Means:
    """What every course of a client shares. `tried` is told the address of each attempt, and why it gave no answer."""

    circuit: Circuit
    backoff: Backoff
    sample_retries: int
    now: Callable[[], float]
    luck: Luck
    new_key: Callable[[], str]
    tried: Callable[[str, str | None], None] = lambda _url, _reason: None


@dataclass(frozen=True, slots=True)
class Asking(Generic[R]):
    """What is asked of every item of a call: how a body begins, how an answer is read, what stands for no answer."""

    path: str
    head: bytes
    deadline: float
    read: Callable[[bytes, Sequence[Item]], list[R]]
    failed: Callable[[Item, Failure], R]


@dataclass(frozen=True, slots=True)
class GaveUp:
    """The time is over. `reason` is what the last attempt met with."""

    reason: str


def seen_through(chunk: Chunk, asking: Asking[R], means: Means) -> Course[list[R]]:
    """One record an item, in order. Raise `RequestRefused`; whatever else happens is in the records."""
    records = yield from _answered(chunk, asking, means)
    for n in range(means.sample_retries):
        places = [i for i, r in enumerate(records) if r.error is not None and r.error.code in ROW_MAY_PASS]
        pause = pause_s(n, None, asking.deadline - means.now(), means.backoff, means.luck) if places else None
        if pause is None:
            break
        yield Wait(pause)
        again = yield from _answered(Chunk(chunk.order, tuple(chunk.items[i] for i in places)), asking, means)
        for i, record in zip(places, again, strict=True):
            # That nobody answers now says less than what was said before.
            if record.error is None or record.error.code != UNAVAILABLE:
                records[i] = record
    return records


def attempts(
    order: Order, path: str, content: bytes | None, read: Callable[[bytes], T], deadline: float, means: Means
) -> Course[Good[T] | Refused | TooLarge | GaveUp]:
    """One request, sent until there is an answer that ends it: to every server that is up, then a pause, then again."""
    key, n_rounds, tried, hints = means.new_key(), 0, set[str](), list[float | None]()
    reasons: list[str] = []
    while (left_s := deadline - means.now()) > 0:
        url = means.circuit.pick(order, tried, means.now())
        if url is None:
            pause = pause_s(n_rounds, _soonest(hints), left_s, means.backoff, means.luck)
            if pause is None:
                break
            yield Wait(pause)
            n_rounds, tried, hints = n_rounds + 1, set(), []
            continue
        tried.add(url)
        event = yield Ask(url, path, content, key, deadline)
        assert event is not None
        verdict = judge(event, read)
        if not isinstance(verdict, TryAgain):
            means.circuit.works(url)
            means.tried(url, None)
            return verdict
        means.tried(url, verdict.reason)
        if verdict.is_servers:
            means.circuit.fails(url, means.now(), verdict.retry_after_s)
        hints.append(verdict.retry_after_s)
        reasons = _with(reasons, f"{verdict.reason} ({url})")
    return GaveUp("; before that ".join(reasons) or "the deadline passed before anything was sent")


def _answered(chunk: Chunk, asking: Asking[R], means: Means) -> Course[list[R]]:
    """As `seen_through`, but what may pass for a single item is left as it is."""
    order, items = chunk
    content = body(asking.head, items)
    end = yield from attempts(
        order, asking.path, content, lambda answer: asking.read(answer, items), asking.deadline, means
    )
    if isinstance(end, Good):
        return end.value
    if isinstance(end, GaveUp):
        return [asking.failed(item, Failure(UNAVAILABLE, end.reason)) for item in items]
    if isinstance(end, Refused):
        raise refusal(end, items)
    if len(items) == 1:
        return [asking.failed(items[0], end.failure)]
    first, second = halves(items)
    done = yield from _answered(Chunk(order, first), asking, means)
    rest = yield from _answered(Chunk(order, second), asking, means)
    return done + rest


def _soonest(hints: Sequence[float | None]) -> float | None:
    """When the first of the servers of a round wants to be asked again; None where one of them names no time."""
    known = [hint for hint in hints if hint is not None]
    return min(known) if len(known) == len(hints) else None


def _with(reasons: list[str], reason: str) -> list[str]:
    """The newest first, and two before that differ: the last attempts may only have had too little time."""
    return [reason, *[r for r in reasons if r != reason][:2]]


_PLACE = re.compile(r"(?:samples|comparisons)\[(\d+)\]")


def refusal(refused: Refused, items: Sequence[Item] = ()) -> RequestRefused:
    """As an exception that names the offending sample by its place in the call, not in the request."""
    failure = refused.failure
    found = _PLACE.match(str(failure.details.get("field")))
    place = int(found.group(1)) if found else len(items)
    sample = items[place].place if place < len(items) else None
    return RequestRefused(refused.status, failure.code, failure.message, failure.details, sample)

"""Which waiting tickets ride in the next batch, who is too late, and when to look again.

A pure function of the waiting room, the limits and the time. It knows nothing of asyncio, HTTP, torch
or metrics; `batcher` does what the plan says.

The oldest ticket always rides, so nobody starves: behind k older tickets one waits for k batches at most.
It is joined by those nearest to it in length, so little is padded, as many as the budget allows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf

Cost = Callable[[Sequence[int]], int]
"""Token positions that a batch of rows with these lengths takes. Not smaller for more rows."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """One row in the waiting room. Times are of one clock, in seconds."""

    ticket_id: int
    n_tokens: int
    arrived_at: float
    deadline: float = inf


@dataclass(frozen=True, slots=True)
class Limits:
    """`max_tokens` bounds the cost of a batch of several rows; a single row always may ride.

    `linger_s` is how long the oldest waits for company that is on its way. `max_padding` is the share of
    the cost that may be padding. Only the `window` oldest tickets are considered.
    """

    max_tokens: int
    linger_s: float
    max_padding: float = 0.25  # not measured yet
    window: int = 512


@dataclass(frozen=True, slots=True)
class Plan:
    """Every ticket is in exactly one of the three. `look_again_at` None: when something happens."""

    batch: tuple[Ticket, ...]
    expired: tuple[Ticket, ...]
    waiting: tuple[Ticket, ...]
    look_again_at: float | None


def plan(tickets: Sequence[Ticket], limits: Limits, cost: Cost, now: float, *, coming: int = 0) -> Plan:
    """What to do now that the scorer is free. `coming` counts rows that will be here soon."""
    expired = tuple(t for t in tickets if t.deadline <= now)
    alive = sorted((t for t in tickets if t.deadline > now), key=_age)
    if not alive:
        return Plan((), expired, (), None)
    batch = _ride_with_oldest(alive[: limits.window], limits, cost)
    is_full = len(batch) < len(alive)
    leaves_at = alive[0].arrived_at + limits.linger_s
    if coming and not is_full and now < leaves_at:
        return Plan((), expired, tuple(alive), min(leaves_at, *(t.deadline for t in alive)))
    riding = {t.ticket_id for t in batch}
    waiting = tuple(t for t in alive if t.ticket_id not in riding)
    return Plan(batch, expired, waiting, min((t.deadline for t in waiting), default=None))


def _age(ticket: Ticket) -> tuple[float, int]:
    return ticket.arrived_at, ticket.ticket_id


def _ride_with_oldest(alive: Sequence[Ticket], limits: Limits, cost: Cost) -> tuple[Ticket, ...]:
    """The oldest and the n nearest to it in length, longest first. `alive` is sorted by age."""
    oldest = alive[0]
    # The oldest itself comes first: at distance 0, and older than its equals.
    nearest = sorted(alive, key=lambda t: (abs(t.n_tokens - oldest.n_tokens), _age(t)))
    lengths = [t.n_tokens for t in nearest]

    def fits(n: int) -> bool:
        taken = cost(lengths[:n])
        return taken <= limits.max_tokens and sum(lengths[:n]) >= (1.0 - limits.max_padding) * taken

    n = _largest(fits, len(nearest))
    return tuple(sorted(nearest[:n], key=lambda t: (-t.n_tokens, t.ticket_id)))


def _largest(fits: Callable[[int], bool], most: int) -> int:
    """By bisection, some n in 1..most that fits while a larger one that was tried does not; 1 always counts."""
    if fits(most):
        return most
    low, high = 1, most
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low

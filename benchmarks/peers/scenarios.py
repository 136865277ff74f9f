"""Scenarios for every server: the requests, and the check of the replies. Knows a server only by its `Peer`.

Every text is rendered with the model's chat template before the measurement, so that tokenising is part of all figures
and rendering of none.
"""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain
from typing import Literal

from benchmarks import models, workloads
from benchmarks.machine import spread
from benchmarks.models import END, START
from benchmarks.peers.client import HttpAnswer, closed_loop, open_loop
from benchmarks.peers.measurements import PeerRun
from benchmarks.peers.processes import PeerServer
from benchmarks.peers.record import Peer, Text
from benchmarks.workloads import Request, TextPair

N_REFERENCE = 16
RATE_OF_SINGLE = 0.6
Form = Literal["text", "ids"]


@dataclass(frozen=True, slots=True)
class Scenario:
    """Requests, their arrival times, and the reference scores of some pairs (by their index among all pairs)."""

    name: str
    requests: tuple[tuple[Text, ...], ...]
    clients: int
    reference: dict[int, float]
    due: tuple[float, ...] | None = None
    """Due time of each request, in mean distances between requests; None: as soon as a client is free."""


class OpenLoopRate:
    """Pairs a second of the open loop: the requested rate, else a share of the first server's maximum."""

    def __init__(self, given: float | None) -> None:
        self.per_s = given

    def set_from(self, run: PeerRun) -> None:
        """Set the rate from the first run of `single`."""
        if self.per_s is None and run.workload == "single" and not run.failures:
            self.per_s = RATE_OF_SINGLE * run.per_wall_s


# Scenarios in order; `repeats` sends the pairs of `duplicates` again, in other requests.
SCENARIOS = ("one_at_a_time", "single", "open", "ragged", "grpo", "duplicates", "repeats", "long")
_MADE_FROM = {"open": "single", "repeats": "duplicates"}


def make_scenarios(model: str, names: Sequence[str], scale: float, form: Form, seed: int) -> list[Scenario]:
    """Create the scenarios called `names`, in order, after one that warms the server up."""
    from benchmarks.engines_under_test import LoadedCheckpoint

    folder = models.folder(model)
    tokenizer, encode, plain = workloads.tokenizer_of(folder), workloads.encoder_of(folder), LoadedCheckpoint(folder)

    def ids(pair: TextPair) -> list[int]:
        return list(encode(pair.sample()).ids)

    def scenario(name: str) -> Scenario:
        # An open loop has separate texts, so that a server has not cached them during `single`.
        own_seed = seed + 1_000 if name == "open" else seed
        work = workloads.make(_MADE_FROM.get(name, name), tokenizer, scale, own_seed)
        requests = shuffled(work.requests, seed) if name == "repeats" else work.requests
        pairs = tuple(chain.from_iterable(requests))
        due = arrivals(len(requests), seed) if name == "open" else None
        rows = tuple(tuple(ids(p) if form == "ids" else rendered(p) for p in request) for request in requests)
        reference = {i: plain.alone(tuple(ids(pairs[i]))) for i in spread(len(pairs), N_REFERENCE)}
        return Scenario(name, rows, work.clients, reference, due)

    warm = workloads.make("ragged", tokenizer, 0.0625, seed + 2_000)
    warm_rows = tuple(tuple(ids(p) if form == "ids" else rendered(p) for p in request) for request in warm.requests)
    wanted = {*names, *(_MADE_FROM[name] for name in names if name == "repeats")}
    return [Scenario("", warm_rows, 2, {}), *(scenario(name) for name in SCENARIOS if name in wanted)]


def rendered(pair: TextPair) -> str:
    """Conversation as the chat template of the benchmark models renders it."""
    return f"{START}user\n{pair.prompt}{END}\n{START}assistant\n{pair.response}{END}\n"


def as_text(scenario: Scenario, decode: Callable[[list[int]], str]) -> Scenario:
    """Convert a scenario to text, for a server that accepts no ids."""
    requests = tuple(tuple(t if isinstance(t, str) else decode(t) for t in request) for request in scenario.requests)
    return replace(scenario, requests=requests)


def shuffled(requests: Sequence[Request], seed: int) -> tuple[Request, ...]:
    """The same pairs in requests of the same sizes, with other neighbours."""
    pairs = list(chain.from_iterable(requests))
    random.Random(seed).shuffle(pairs)
    rest = iter(pairs)
    return tuple(tuple(next(rest) for _ in request) for request in requests)


def arrivals(n: int, seed: int) -> tuple[float, ...]:
    """Poisson process of rate 1: arrival times that do not depend on replies."""
    rng = random.Random(seed)
    return tuple(accumulate(rng.expovariate(1.0) for _ in range(n)))


def run_scenario(
    scenario: Scenario, base: str, peer: Peer, server: PeerServer, n: int, rate: OpenLoopRate
) -> PeerRun | None:
    """Run one scenario with one server. None if an open loop has no rate."""
    if scenario.due is not None and rate.per_s is None:
        return None
    bodies = [json.dumps(peer.body(request)).encode() for request in scenario.requests]
    cpu_s, started = server.cpu_s(), time.perf_counter()
    if scenario.due is None:
        answers = closed_loop(base + peer.path, bodies, scenario.clients)
    else:
        answers = open_loop(base + peer.path, bodies, [d / (rate.per_s or 1.0) for d in scenario.due], scenario.clients)
    wall_s = time.perf_counter() - started
    cpu_s = server.cpu_s() - cpu_s
    error, failures = check_scores(scenario, answers, peer)
    run = PeerRun(
        peer=peer.name,
        workload=scenario.name,
        round=n,
        pairs=sum(map(len, scenario.requests)),
        cpu_s=cpu_s,
        wall_s=wall_s,
        latencies_s=tuple(a.latency_s for a in answers),
        memory_mib=server.memory_mib(),
        max_error=error,
        failures=failures,
    )
    rate.set_from(run)
    return run


def check_scores(scenario: Scenario, answers: Sequence[HttpAnswer], peer: Peer) -> tuple[float, tuple[str, ...]]:
    """Largest difference to the reference, and the failures."""
    failures = list(dict.fromkeys(a.error for a in answers if a.error))
    scores: list[float] = []
    for request, answer in zip(scenario.requests, answers, strict=True):
        got = peer.scores(answer.reply) if not answer.error else [math.nan] * len(request)
        if len(got) != len(request):
            failures.append(f"{len(got)} scores for {len(request)} texts")
            got = [math.nan] * len(request)
        scores += got
    return max((abs(scores[i] - right) for i, right in scenario.reference.items()), default=0.0), tuple(failures)

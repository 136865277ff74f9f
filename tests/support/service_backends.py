"""Backends for drills with real server processes: held at a gate, failing to load, failing to score.

`python -m tests.support.service_backends` is `rewardserve` with one more backend, `drill`. Its model name
says what goes wrong: `load-waits:FIFO`, `load-fails:WORDS`, `forward-waits:FIFO` (the first forward),
`waits-while-there-is:FIFO` (each), `raises:WORDS`, `fails-while-there-is:FILE`, `no-memory-while-there-is:FILE`,
`nan:`, `too-few:`, `bug-in-encoder:WORDS`, `encoder-waits:FIFO`,
`bad-cost:`, `two-heads:`, `noisy:`, `noisy-without-probes:`, `tampered-after:N`, `dies-after:N`, `no-memory-above:N` (rows;
torch's own error), `eats-above:N` (rows; takes a gigabyte), `time-jumps:SECONDS` (the wall clock, with every forward). A gate
is a named pipe: whoever opens it for writing knows that the server is inside, and lets it go on by closing it.
"""

from __future__ import annotations

import math
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from rewardserve.model.backends import BACKENDS, LoadedModel, LoadError, ModelSpec, SampleEncoder, echo
from rewardserve.model.contract import Probe
from rewardserve.model.scorer import BatchScores, OutOfMemory, ScorerError, TokenBatch
from tests.support.service_fakes import FakeScorer, Untrue, one_too_few, right_scores, scores_with


def pass_gate(fifo: str) -> None:
    """Wait until the test has opened the pipe for writing and closed it."""
    Path(fifo).read_bytes()


def load(spec: ModelSpec) -> LoadedModel:
    kind, _, words = spec.model.partition(":")
    loaded = echo.load(replace(spec, model="echo"))
    if kind == "load-waits":
        pass_gate(words)
    elif kind == "load-fails":
        raise LoadError(words)
    elif kind == "bug-in-encoder":
        return replace(loaded, encode=_Choking(words))
    elif kind == "encoder-waits":
        return replace(loaded, encode=_FirstWaits(words, loaded.encode))
    elif kind == "two-heads":
        heads = (("convincing", 2.0), ("harmless", 0.5))
        return replace(loaded, identity=replace(loaded.identity, heads=heads), scorer=FakeScorer(_two_heads))
    elif kind == "noisy":
        probes = tuple(Probe({"text": "x" * n}, (7,) * n, 0.0, 1.0) for n in range(1, 9))
        return replace(loaded, scorer=FakeScorer(_by_company), contract=replace(loaded.contract, probes=probes))
    elif kind == "noisy-without-probes":
        return replace(loaded, scorer=FakeScorer(_by_company), identity=replace(loaded.identity, n_parameters=1))
    elif kind == "tampered-after":
        return replace(loaded, scorer=_Tampered(int(words)), identity=replace(loaded.identity, n_parameters=1))
    elif kind == "dies-after":
        return replace(loaded, scorer=_Mortal(int(words)))
    elif kind == "bad-cost":
        return replace(loaded, scorer=_StopsThePlanner())
    elif kind in BEHAVIOURS:
        return replace(loaded, scorer=FakeScorer(BEHAVIOURS[kind](words)))
    return loaded


class _Tampered(FakeScorer):
    """Another model from the n-th batch on."""

    def __init__(self, n):
        super().__init__()
        self._n = n

    def score(self, batch):
        scored = super().score(batch)
        if len(self.batches) <= self._n:
            return scored
        return replace(scored, rows=tuple({"score": 1.0 - heads["score"]} for heads in scored.rows))


class _Mortal(FakeScorer):
    """Dead after the n-th batch."""

    def __init__(self, n):
        super().__init__()
        self._n = n

    @property
    def is_alive(self):
        return len(self.batches) < self._n

    def score(self, batch):
        if not self.is_alive:
            raise ScorerError("dead")
        return super().score(batch)


class _FirstWaits(SampleEncoder):
    def __init__(self, fifo, encode):
        self._fifo, self._encode, self._passed = fifo, encode, False

    def __call__(self, sample):
        if not self._passed:
            self._passed = True
            pass_gate(self._fifo)
        return self._encode(sample)

    def many(self, samples):
        return [self(sample) for sample in samples]


class _Choking(SampleEncoder):
    def __init__(self, words):
        self._words = words

    def __call__(self, sample):
        raise ValueError(f"{self._words}: {sample!r}")

    def many(self, samples):
        return [self(sample) for sample in samples]


class _StopsThePlanner(FakeScorer):
    pads_rows = Untrue()


def _by_company(batch: TokenBatch) -> BatchScores:
    return BatchScores(({"score": 0.25 * len(batch)},) * len(batch), batch.n_tokens)


def _two_heads(batch: TokenBatch) -> BatchScores:
    rows = tuple({"convincing": s["score"], "harmless": 1.0} for s in right_scores(batch).rows)
    return BatchScores(rows, batch.n_tokens)


def _first_forward_waits(fifo):
    passed = []

    def behave(batch: TokenBatch) -> BatchScores:
        if not passed:
            passed.append(True)
            pass_gate(fifo)
        return right_scores(batch)

    return behave


def _waits_while_there_is(fifo):
    def behave(batch: TokenBatch) -> BatchScores:
        if Path(fifo).exists():
            pass_gate(fifo)
        return right_scores(batch)

    return behave


def _raises(words):
    def behave(batch: TokenBatch) -> BatchScores:
        # As a library might, quote the failing input.
        text = bytes(batch.rows[0][:-1]).decode(errors="replace")
        raise (ScorerError("device-side assert") if words == "ScorerError" else RuntimeError(f"cannot read {text!r}"))

    return behave


def _fails_while_there_is(error):
    def of(file):
        def behave(batch: TokenBatch) -> BatchScores:
            if Path(file).exists():
                raise error
            return right_scores(batch)

        return behave

    return of


def _no_memory_above(n):
    """Out of memory, as torch and our translation of its errors report it."""
    from rewardserve.model.backends.scorer_errors import as_scorer_errors

    def behave(batch: TokenBatch) -> BatchScores:
        import torch

        with as_scorer_errors(batch.n_tokens):
            if len(batch) > int(n):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return right_scores(batch)

    return behave


def _eats_above(n):
    def behave(batch: TokenBatch) -> BatchScores:
        if len(batch) > int(n):
            bytearray(os.urandom(1 << 20)) * 1024  # written, so that the pages are resident
        return right_scores(batch)

    return behave


def _time_jumps(seconds):
    """`time.time` of the whole process with a clock that is changed back and forth with every forward."""
    real, jumps = time.time, []
    time.time = lambda: real() + (float(seconds) if len(jumps) % 2 else 0.0)

    def behave(batch: TokenBatch) -> BatchScores:
        jumps.append(True)
        return right_scores(batch)

    return behave


BEHAVIOURS = {
    "no-memory-above": _no_memory_above,
    "eats-above": _eats_above,
    "time-jumps": _time_jumps,
    "forward-waits": _first_forward_waits,
    "waits-while-there-is": _waits_while_there_is,
    "raises": _raises,
    "fails-while-there-is": _fails_while_there_is(ScorerError("device-side assert")),
    "no-memory-while-there-is": _fails_while_there_is(OutOfMemory("no memory")),
    "nan": lambda _: scores_with(math.nan, lambda row: True),
    "too-few": lambda _: one_too_few,
}


if __name__ == "__main__":
    from rewardserve.cli import main

    BACKENDS["drill"] = "tests.support.service_backends:load"
    sys.exit(main())

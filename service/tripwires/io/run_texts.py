"""Keep some texts of each run in memory, for attribution to compare: some of the first responses and the latest ones.

Texts are bounded by number, by length and by bytes over all runs, and are deleted with the state of their run. They are never
logged and never written to disk. Belongs to one event loop.
"""

from __future__ import annotations

import random
import sys
from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush
from typing import NamedTuple

from rewardserve.model.conversation import Message, Sample
from rewardserve.service.tripwires.attribution.observed import MAX_CHARACTERS, ObservedSample
from rewardserve.service.tripwires.baseline import BaselineSource
from rewardserve.service.tripwires.hashing import spread
from rewardserve.service.tripwires.run_state import Run

N_SAMPLES = 256
"""Early samples of a run that are kept, and recent ones."""

N_OF_PROMPT = 16
"""Recent samples of one prompt that are kept, the latest, so that a few large groups are not all."""

N_OF_STEP = N_SAMPLES // 2
"""Recent samples of one step that are kept: all responses to prompts drawn at random, because trainers may send a step in the order
of its tasks, and its last samples are then of one task."""

MAX_BYTES = 64 * 2**20
"""Limit of the bytes of all texts, as they lie in memory, over all runs."""

_MAX_AUDITS = 2_048

Context = str | tuple[Message, ...]
"""The turns before a response: one of the user, or several."""


class KeptSample(NamedTuple):
    """A sample with clipped texts. `ids_hash` is of its token ids, by which the audit judge's score finds it; `missing_end`: its
    response was cut off.

    `context` are all turns before the response, with which an edited response can be scored again. None: not known, because
    the client rendered the text, or because these turns or the response were longer than `MAX_CHARACTERS`.
    """

    sample: ObservedSample
    ids_hash: int
    context: Context | None
    missing_end: bool = False

    @classmethod
    def of(
        cls, sample: ObservedSample, ids_hash: int, context: Context | None, *, missing_end: bool = False
    ) -> KeptSample:
        """The sample as it is kept."""
        is_whole = max(sum(map(len, _contents(context))), len(sample.response)) <= MAX_CHARACTERS
        return cls(sample.clipped(), ids_hash, context if is_whole else None, missing_end)

    def with_response(self, text: str) -> Sample:
        """The prompt with this response, which ends as the response that was scored. Its context must be known."""
        return Sample(prompt=self.context, response=text, finish_reason="length" if self.missing_end else "stop")

    @property
    def n_bytes(self) -> int:
        """Bytes of the texts."""
        texts = self.sample.prompt, self.sample.response, self.sample.system, *_contents(self.context)
        return sum(sys.getsizeof(text) for text in texts)


class SeenSamples(NamedTuple):
    """Numbers of samples of a run: `early` ones, until its baseline is complete, and `recent` ones after that."""

    early: int
    recent: int


@dataclass(slots=True)
class _TextsOfRun:
    """Texts of one run under one model. `learned` are the strata, by key, whose early samples are over.

    `recent` has the recent samples by number, the oldest first. `drawn` has a heap for each step: the random numbers of prompts,
    negative, with the numbers of their samples, of which some may be deleted. `n_before` is the number of samples of
    before the early ones that are kept now.
    """

    run: Run
    baseline_source: BaselineSource
    learned: set[str] = field(default_factory=set)
    early: list[KeptSample] = field(default_factory=list)
    recent: dict[int, KeptSample] = field(default_factory=dict)
    n_of_prompt: Counter[int] = field(default_factory=Counter)
    n_of_step: Counter[int] = field(default_factory=Counter)
    drawn: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    audits: dict[int, float] = field(default_factory=dict)
    n_seen: int = 0
    n_recent: int = 0
    n_before: int = 0
    n_bytes: int = 0


class RunTexts:
    """Texts of all runs, by label, the run with the oldest latest sample first. `seed` decides which early samples are kept."""

    def __init__(self, seed: int = 0, max_bytes: int = MAX_BYTES) -> None:
        self._random = random.Random(seed)
        self._max_bytes = max_bytes
        self._runs: OrderedDict[str, _TextsOfRun] = OrderedDict()

    @property
    def n_bytes(self) -> int:
        """Bytes of all texts."""
        return sum(each.n_bytes for each in self._runs.values())

    def add(self, runs: Mapping[str, Run], label: str, samples: Sequence[KeptSample]) -> None:
        """Keep samples of a run that the monitor has just counted. `runs` are all that the monitor has: others are forgotten.

        Samples are early until the baseline of their task is complete; of these, each is kept with the same probability. Another
        model gives other scores, so its texts replace those of the earlier one.
        """
        self.forget_others(runs)
        run = runs[label]
        texts = self._runs.get(label)
        if texts is None or texts.baseline_source is not run.baseline_source:
            texts = self._runs[label] = _TextsOfRun(run, run.baseline_source)
        self._runs.move_to_end(label)
        strata = {task: run.stratum_of(task) for task in {each.sample.task for each in samples}}
        for sample in samples:
            if strata[sample.sample.task].key in texts.learned:
                _append(texts, sample)
            else:
                self._sample_early(texts, sample)
        # After a restart a run has its baselines at once, but no early samples yet.
        if texts.n_seen >= N_SAMPLES:
            texts.learned.update(each.key for each in strata.values() if each.has_baseline)
        self._bound()

    def add_audit(self, label: str, ids_hash: int, audit: float) -> None:
        """Keep the audit judge's score of a sample of this run."""
        if (texts := self._runs.get(label)) is None:
            return
        texts.audits[ids_hash] = audit
        if len(texts.audits) > _MAX_AUDITS:
            known = {each.ids_hash for each in (*texts.early, *texts.recent.values())}
            texts.audits = {key: audit for key, audit in texts.audits.items() if key in known}

    def early(self, label: str) -> list[KeptSample]:
        """Some of the samples from before the run had a baseline, the oldest first."""
        texts = self._runs.get(label)
        return [] if texts is None else [_audited(each, texts.audits) for each in texts.early]

    def recent(self, label: str) -> list[KeptSample]:
        """The latest samples since then, the oldest first."""
        texts = self._runs.get(label)
        return [] if texts is None else [_audited(each, texts.audits) for each in texts.recent.values()]

    def n_seen(self, label: str) -> SeenSamples:
        """How many early samples and how many later ones this run has sent, kept or not."""
        texts = self._runs.get(label)
        return SeenSamples(0, 0) if texts is None else SeenSamples(texts.n_before + texts.n_seen, texts.n_recent)

    def begin_again(self, label: str) -> bool:
        """Make the recent samples the early ones, with which later ones are compared. Return whether there were enough."""
        texts = self._runs.get(label)
        if texts is None or len(texts.recent) < N_SAMPLES // 2:
            return False
        texts.n_before += texts.n_seen + texts.n_recent - len(texts.recent)
        texts.n_bytes -= sum(each.n_bytes for each in texts.early)
        texts.early, texts.n_seen, texts.n_recent = [*texts.recent.values()], len(texts.recent), 0
        for each in (texts.recent, texts.n_of_prompt, texts.n_of_step, texts.drawn):
            each.clear()
        return True

    def forget_others(self, runs: Mapping[str, Run]) -> None:
        """Delete the texts of runs that the monitor has forgotten, also where a new run has the same label."""
        for label in [label for label, texts in self._runs.items() if runs.get(label) is not texts.run]:
            del self._runs[label]

    def _sample_early(self, texts: _TextsOfRun, sample: KeptSample) -> None:
        """Reservoir sampling (Vitter 1985, algorithm R)."""
        texts.n_seen += 1
        if len(texts.early) < N_SAMPLES:
            texts.early.append(sample)
        elif (place := self._random.randrange(texts.n_seen)) < N_SAMPLES:
            texts.n_bytes -= texts.early.pop(place).n_bytes
            texts.early.append(sample)
        else:
            return
        texts.n_bytes += sample.n_bytes

    def _bound(self) -> None:
        """Delete the texts of the runs with the oldest latest samples, until all are within the limit."""
        excess = self.n_bytes - self._max_bytes
        for texts in self._runs.values():
            if excess <= 0:
                return
            excess -= texts.n_bytes
            texts.early.clear()
            texts.recent.clear()
            texts.n_of_prompt.clear()
            texts.n_of_step.clear()
            texts.drawn.clear()
            texts.audits.clear()
            texts.n_bytes = texts.n_seen = texts.n_recent = texts.n_before = 0


def _contents(context: Context | None) -> list[str]:
    if context is None:
        return []
    return [context] if isinstance(context, str) else [message.content for message in context]


def _append(texts: _TextsOfRun, sample: KeptSample) -> None:
    key, step, number = sample.sample.prompt_key, sample.sample.step, texts.n_recent
    texts.recent[number] = sample
    texts.n_recent += 1
    texts.n_bytes += sample.n_bytes
    texts.n_of_prompt[key] += 1
    if step is not None:
        texts.n_of_step[step] += 1
        heappush(texts.drawn.setdefault(step, []), (-spread(key ^ step), number))
    if texts.n_of_prompt[key] > N_OF_PROMPT:
        _delete(texts, next(at for at, each in texts.recent.items() if each.sample.prompt_key == key))
    elif step is not None and texts.n_of_step[step] > N_OF_STEP:
        _delete(texts, _least_of_step(texts, step))
    elif len(texts.recent) > N_SAMPLES:
        _delete(texts, next(iter(texts.recent)))


def _delete(texts: _TextsOfRun, number: int) -> None:
    """Delete one recent sample."""
    deleted = texts.recent.pop(number)
    key, step = deleted.sample.prompt_key, deleted.sample.step
    texts.n_bytes -= deleted.n_bytes
    texts.n_of_prompt[key] -= 1
    if not texts.n_of_prompt[key]:
        del texts.n_of_prompt[key]
    if step is None:
        return
    texts.n_of_step[step] -= 1
    if not texts.n_of_step[step]:
        del texts.n_of_step[step], texts.drawn[step]
    elif len(drawn := texts.drawn[step]) > 2 * N_OF_STEP:
        drawn[:] = [each for each in drawn if each[1] in texts.recent]
        heapify(drawn)


def _least_of_step(texts: _TextsOfRun, step: int) -> int:
    """The first sample of this step to the prompt with the largest of random numbers, which prompt and step give."""
    drawn = texts.drawn[step]
    while drawn[0][1] not in texts.recent:
        heappop(drawn)
    return drawn[0][1]


def _audited(kept: KeptSample, audits: Mapping[int, float]) -> KeptSample:
    audit = audits.get(kept.ids_hash)
    return kept if audit is None else kept._replace(sample=kept.sample._replace(audit=audit))

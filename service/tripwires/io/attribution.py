"""Report what the extra reward of a run is paid for: compare its recent responses with its first ones, and test edits.

A report is computed on a thread, one at a time and within a share of a core; edits are scored in spare capacity. It raises no
alert and changes no reward. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from statistics import pstdev
from typing import NamedTuple, Protocol

from rewardserve.model.conversation import Sample
from rewardserve.service.clock import Clock, utc_now
from rewardserve.service.errors import NoSuchRun, RequestRefused, TooFewSamples
from rewardserve.service.tripwires.attribution.edits import Edit
from rewardserve.service.tripwires.attribution.effects import MIN_PROMPTS, Effect, effect, explained_share
from rewardserve.service.tripwires.attribution.findings import Finding, GrowthReport
from rewardserve.service.tripwires.attribution.growth import compare_with
from rewardserve.service.tripwires.attribution.observed import ObservedSample
from rewardserve.service.tripwires.attribution.sentences import report_sentences
from rewardserve.service.tripwires.attribution.tables import EarlyFeatures
from rewardserve.service.tripwires.io.events import TripwireEvents
from rewardserve.service.tripwires.io.run_texts import KeptSample, RunTexts
from rewardserve.service.tripwires.run_monitor import RunMonitor

MAX_EDITED = 32
"""First responses that each edit is put into."""

MAX_TESTED = 2
"""Findings whose edit is tested."""

_EXAMPLE_CHARACTERS = 600


class Scores(Protocol):
    """Scorer of edited responses; `edit_scorer.EditScorer` is one."""

    async def scores(self, samples: Sequence[Sample]) -> list[float | None]:
        """The score of each sample, None without one."""
        ...


class TestedEdit(NamedTuple):
    """Effect of the edit of a finding on first responses, and the share of the growth of the score that it explains."""

    earned: Effect
    explains: Effect


class SampleSpan(NamedTuple):
    """The samples of one side of a report: their number, that of their prompts, and their first and last step."""

    samples: int
    prompts: int
    first_step: int | None
    last_step: int | None

    @classmethod
    def of(cls, samples: Sequence[ObservedSample]) -> SampleSpan:
        """The span of these samples."""
        steps = [sample.step for sample in samples if sample.step is not None]
        n_prompts = len({sample.prompt_key for sample in samples})
        return cls(len(samples), n_prompts, min(steps, default=None), max(steps, default=None))


class AttributionReport(NamedTuple):
    """Report on one run. `tested` are the edits that were scored, by the index of their finding. `cpu_s` is its cost."""

    run: str
    computed_at: str
    sentences: tuple[str, ...]
    growth: GrowthReport
    tested: dict[int, TestedEdit]
    early: SampleSpan
    recent: SampleSpan
    cpu_s: float


class AlertedReport(NamedTuple):
    """Report that was begun when these wires tripped, of the samples of that moment."""

    wires: tuple[str, ...]
    report: AttributionReport


class Attribution:
    """Attribution for all runs. Belongs to one event loop. `cpu_share`: of a core, for reports."""

    def __init__(
        self, monitor: RunMonitor, texts: RunTexts, clock: Clock, cpu_share: float, events: TripwireEvents
    ) -> None:
        self.texts = texts
        self._events = events
        self._monitor = monitor
        self._clock = clock
        self._cpu_share = cpu_share
        self._not_before = clock.now()
        self._turn = asyncio.Lock()
        self._reports: dict[str, AttributionReport] = {}
        self._alerted: dict[str, AlertedReport] = {}
        self._tasks: dict[str, asyncio.Task[AttributionReport]] = {}
        self._alert_tasks: set[asyncio.Task[None]] = set()

    async def report(self, label: str, scorer: Scores) -> AttributionReport:
        """Report on a run: the last one while the CPU share is used up, otherwise a new one. `scorer` is of the run's model.

        Raise `NoSuchRun` or `TooFewSamples`. A report goes on after its caller was cancelled.
        """
        early, recent = self._samples(label)
        if label in self._reports and self._clock.now() < self._not_before:
            return self._reports[label]
        return await asyncio.shield(self._begin(label, early, recent, scorer))

    def begin_for_alerts(self, label: str, wires: Sequence[str], scorer: Scores) -> None:
        """Begin a report on a run whose alerts are new, of the samples that it has now: later ones replace them. Never waits."""
        with suppress(RequestRefused):
            task = asyncio.create_task(
                self._finish_for_alerts(label, tuple(wires), self._begin(label, *self._samples(label), scorer)),
                name="attribution of alerts",
            )
            self._alert_tasks.add(task)
            task.add_done_callback(self._alert_tasks.discard)

    def alerted(self, label: str) -> AlertedReport | None:
        """The report of the latest alerts of this run, if it is computed."""
        return self._alerted.get(label)

    async def stop(self) -> None:
        """Cancel the reports that are being computed."""
        tasks = (*self._alert_tasks, *self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _samples(self, label: str) -> tuple[list[KeptSample], list[KeptSample]]:
        """First and recent samples of a run. Raise `NoSuchRun` or `TooFewSamples`. Deletes what belongs to forgotten runs."""
        runs = self._monitor.runs
        self.texts.forget_others(runs)
        for each in [each for each in self._reports if each not in runs]:
            del self._reports[each]
            self._alerted.pop(each, None)
        if label not in runs:
            raise NoSuchRun(f"no run has the label {label[:64]!r}, or it is forgotten: see GET /tripwires")
        early, recent = self.texts.early(label), self.texts.recent(label)
        _check_enough(early, recent)
        return early, recent

    def _begin(
        self, label: str, early: Sequence[KeptSample], recent: Sequence[KeptSample], scorer: Scores
    ) -> asyncio.Task[AttributionReport]:
        """The report of this run that is being computed, or a new one."""
        if label not in self._tasks:
            task = asyncio.create_task(self._compute(label, early, recent, scorer), name="attribution")
            self._tasks[label] = task
            task.add_done_callback(lambda _: self._tasks.pop(label))
        return self._tasks[label]

    async def _finish_for_alerts(
        self, label: str, wires: tuple[str, ...], computing: asyncio.Task[AttributionReport]
    ) -> None:
        try:
            self._alerted[label] = AlertedReport(wires, await asyncio.shield(computing))
        except Exception as error:  # no request awaits this report
            self._events.on_attribution_failure(type(error).__name__)

    async def _compute(
        self, label: str, early: Sequence[KeptSample], recent: Sequence[KeptSample], scorer: Scores
    ) -> AttributionReport:
        async with self._turn:
            await self._clock.wait(asyncio.Event(), self._not_before)
            observed = [[each.sample for each in side] for side in (early, recent)]
            growth, cpu_s = await asyncio.to_thread(_compare, *observed)
            self._not_before = self._clock.now() + cpu_s * (1.0 / self._cpu_share - 1.0)
            tested = await _test_edits(growth, early, scorer)
        earned = {index: each.earned for index, each in tested.items()}
        report = AttributionReport(
            label,
            utc_now(),
            tuple(report_sentences(growth, earned)),
            growth._replace(findings=[_with_short_examples(each) for each in growth.findings]),
            tested,
            SampleSpan.of(observed[0]),
            SampleSpan.of(observed[1]),
            cpu_s,
        )
        self._reports[label] = report
        return report


def _compare(early: Sequence[ObservedSample], recent: Sequence[ObservedSample]) -> tuple[GrowthReport, float]:
    """Compare, on the calling thread; also the seconds of CPU that it took."""
    began = time.thread_time()
    growth = compare_with(EarlyFeatures(early), recent)
    return growth, time.thread_time() - began


def _check_enough(early: Sequence[KeptSample], recent: Sequence[KeptSample]) -> None:
    """Raise `TooFewSamples` where one side has too few prompts to be compared."""
    n_early, n_recent = (SampleSpan.of([each.sample for each in side]) for side in (early, recent))
    if min(n_early.prompts, n_recent.prompts) < MIN_PROMPTS:
        raise TooFewSamples(
            f"of this run the texts of {n_early.samples} first responses to {n_early.prompts} prompts and of "
            f"{n_recent.samples} recent ones to {n_recent.prompts} prompts are known; a comparison needs {MIN_PROMPTS} prompts "
            f"on each side. Responses count as first ones until the baseline of the run, or of their task, is complete.",
            early_samples=n_early.samples,
            early_prompts=n_early.prompts,
            recent_samples=n_recent.samples,
            recent_prompts=n_recent.prompts,
            min_prompts=MIN_PROMPTS,
        )


# -- the causal test ----------------------------------------------------------------------------------------------


async def _test_edits(growth: GrowthReport, early: Sequence[KeptSample], scorer: Scores) -> dict[int, TestedEdit]:
    """Put the edits of the first findings into first responses, and score these with and without."""
    std = pstdev([each.sample.score for each in early])
    chosen = [
        (index, each, each.edit)
        for index, each in enumerate(growth.findings)
        if each.edit is not None and not each.edit.is_length_only
    ]
    tested: dict[int, TestedEdit] = {}
    for index, finding, edit in chosen[:MAX_TESTED] if std > 0.0 else ():
        pairs = edited_pairs(edit, early)
        samples = [Sample(prompt=each.context, response=text) for each, text in pairs]
        samples += [Sample(prompt=each.context, response=each.sample.response) for each, _ in pairs]
        scores = await scorer.scores(samples)
        differences, keys = [], []
        for (each, _), edited, original in zip(pairs, scores[: len(pairs)], scores[len(pairs) :], strict=True):
            if edited is not None and original is not None:
                differences.append((edited - original) / std)
                keys.append(each.sample.prompt_key)
        if len(set(keys)) >= MIN_PROMPTS:
            earned = effect(differences, keys)
            explains = explained_share(earned, finding.growth, growth.score_growth, finding.covariance)
            tested[index] = TestedEdit(earned, explains)
    return tested


def edited_pairs(edit: Edit, early: Sequence[KeptSample]) -> list[tuple[KeptSample, str]]:
    """Up to `MAX_EDITED` first responses to different prompts that lack the feature, each with its edited text."""
    pairs: dict[int, tuple[KeptSample, str]] = {}
    for seed, each in enumerate(early):
        sample = each.sample
        if len(pairs) == MAX_EDITED:
            break
        if each.context and sample.response.strip() and sample.prompt_key not in pairs:
            edited = edit.apply(sample.prompt, sample.response, seed)
            if edited is not None:
                pairs[sample.prompt_key] = each, edited
    return list(pairs.values())


def _with_short_examples(finding: Finding) -> Finding:
    """The finding with examples of bounded length: a report outlives the texts that it was made of."""
    early, recent = (
        tuple(
            each._replace(prompt=each.prompt[:_EXAMPLE_CHARACTERS], response=each.response[:_EXAMPLE_CHARACTERS])
            for each in examples
        )
        for examples in (finding.early_examples, finding.recent_examples)
    )
    return finding._replace(early_examples=early, recent_examples=recent)

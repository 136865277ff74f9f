"""Report what the extra reward of a run is paid for: compare its recent responses with its first ones, and test edits.

A report is computed on a thread, one at a time and within the CPU budget; edits are scored in spare capacity. It is made on
demand, after an alert, and every few windows of a run; the last kind alone gives the statistics of the wires `judge_contradicts`,
`artefact_share`, `paid_novelty` and `rejected_novelty`. Between these, prompt relevance is looked at by itself, because it needs no
edits and a collapse is fast; that gives the statistics of `prompt_relevance` and `mode_collapse`. It changes no reward. Knows
nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from rewardserve.service.clock import Clock
from rewardserve.service.errors import NoSuchRun, RequestRefused
from rewardserve.service.tripwires.attribution.findings import GrowthReport, Novelty
from rewardserve.service.tripwires.attribution.growth import compare_with
from rewardserve.service.tripwires.attribution.novelty_pay import NoveltyPay
from rewardserve.service.tripwires.attribution.observed import ObservedSample
from rewardserve.service.tripwires.attribution.relevance import EarlyTexts, Relevance, compare_relevance
from rewardserve.service.tripwires.attribution.tables import EarlyFeatures
from rewardserve.service.tripwires.attribution.verdicts import (
    has_grown,
    length_has_grown,
    score_has_grown,
    scores_higher,
)
from rewardserve.service.tripwires.baseline import BaselineSource
from rewardserve.service.tripwires.cpu_budget import CpuBudget
from rewardserve.service.tripwires.incidents import most_severe_first
from rewardserve.service.tripwires.io.attribution_report import (
    AlertedReport,
    AttributionReport,
    ShownReport,
    TextComparison,
    check_enough,
    make_report,
    strongest,
)
from rewardserve.service.tripwires.io.edit_tests import EditTests, Scores
from rewardserve.service.tripwires.io.events import TripwireEvents
from rewardserve.service.tripwires.io.length_audits import LengthAudits
from rewardserve.service.tripwires.io.novelty_audits import NoveltyAudits
from rewardserve.service.tripwires.io.run_texts import KeptSample, RunTexts
from rewardserve.service.tripwires.run_monitor import RunMonitor
from rewardserve.service.tripwires.run_state import Run

_LEAST_BETWEEN_REPORTS, _MOST_BETWEEN_REPORTS, _PART_OF_RUN = 128, 1_024, 16
_LEAST_BETWEEN_LOOKS, _MOST_BETWEEN_LOOKS, _LOOK_OF_RUN = 32, 512, 32
"""The same between two looks at prompt relevance."""

_MAX_EARLY = 4
"""Runs of which the features of early samples are kept between reports, those with the latest ones: some MB each."""


class FindingAlerts(Protocol):
    """Receiver of the statistics of periodic reports; `run_watcher.RunWatcher` is one."""

    @property
    def baseline_source(self) -> BaselineSource:
        """The model that the run has."""
        ...

    def add_attributed(self, label: str, statistics: Mapping[str, float]) -> list[str]:
        """Evaluate the wires on these statistics, and send their alerts. Return the wires that are new."""
        ...


@dataclass(slots=True)
class _Progress:
    """The reports of a run under one model: after how many samples the next periodic one, and the next look at prompt relevance,
    are due. The run itself counts both, because it outlives a restart.
    """

    run: Run
    baseline_source: BaselineSource
    edit_tests: EditTests = field(default_factory=EditTests)
    novelty: NoveltyAudits = field(default_factory=NoveltyAudits)
    lengths: LengthAudits = field(default_factory=LengthAudits)
    due_at: int = 0
    look_due_at: int = 0


class Attribution:
    """Attribution for all runs. Belongs to one event loop. `judge` scores edits too."""

    def __init__(
        self, monitor: RunMonitor, texts: RunTexts, clock: Clock, cpu_budget: CpuBudget, events: TripwireEvents
    ) -> None:
        self.texts = texts
        self.judge: Scores | None = None
        self._events = events
        self._monitor = monitor
        self._clock = clock
        self._cpu_budget = cpu_budget
        self._turn = asyncio.Lock()
        self._reports: dict[str, AttributionReport] = {}
        self._alerted: dict[str, dict[str, AlertedReport]] = {}
        self._progress: dict[str, _Progress] = {}
        self._early: dict[str, _Early] = {}
        self._tasks: dict[str, asyncio.Task[AttributionReport]] = {}
        self._background: set[asyncio.Task[None]] = set()

    async def report(self, label: str, scorer: Scores) -> AttributionReport:
        """Report on a run: the last one while the CPU share is used up, otherwise a new one. `scorer` is of the run's model.

        Raise `NoSuchRun` or `TooFewSamples`. A report goes on after its caller was cancelled.
        """
        early, recent = self._samples(label)
        if label in self._reports and self._unpaid_s:
            return self._reports[label]
        return await asyncio.shield(self._begin(label, early, recent, scorer))

    def begin_for_alerts(self, label: str, wires: Sequence[str], scorer: Scores) -> None:
        """Begin a report on a run whose alerts are new, of the samples that it has now: later ones replace them. Never waits."""
        with suppress(RequestRefused):
            computing = self._begin(label, *self._samples(label), scorer)
            self._in_background(self._finish_for_alerts(label, tuple(wires), computing), "attribution of alerts")

    def begin_if_due(self, label: str, scorer: Scores, alerts: FindingAlerts) -> None:
        """Begin the periodic report of a run that has sent samples, or a look at its prompt relevance, if one is due and the CPU
        share allows it. Never waits."""
        progress = self._progress_of(label)
        n = self.texts.n_seen(label)
        is_due = n.recent >= max(_LEAST_BETWEEN_REPORTS, progress.due_at)
        is_look_due = n.recent >= max(1, progress.look_due_at)
        if not (is_due or is_look_due) or self._turn.locked() or self._unpaid_s:
            return
        n_samples = n.early + n.recent
        progress.look_due_at = n.recent + samples_between_looks(n_samples)
        if is_due:
            progress.due_at = n.recent + samples_between_reports(n_samples)
        with suppress(RequestRefused):
            early, recent = self._samples(label, check=is_due)
            work = (
                self._watch(label, progress, n_samples, early, recent, scorer, alerts)
                if is_due
                else self._look(label, progress, early, recent, scorer, alerts)
            )
            self._in_background(work, "periodic attribution")

    async def settle(self) -> None:
        """Wait for the reports in the background, as a replay does between two steps."""
        await asyncio.gather(*self._background)

    def _in_background(self, work: Coroutine[None, None, None], name: str) -> None:
        task = asyncio.create_task(self._reporting_failures(work), name=name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _reporting_failures(self, work: Coroutine[None, None, None]) -> None:
        try:
            await work
        except Exception as error:  # no request awaits this report
            self._events.on_attribution_failure(type(error).__name__)

    def _progress_of(self, label: str) -> _Progress:
        """The reports of this run; new ones where it, or its model, is new."""
        self._forget_others()
        run = self._monitor.runs[label]
        if (known := self._progress.get(label)) is None or known.baseline_source is not run.baseline_source:
            known = self._progress[label] = _Progress(run, run.baseline_source)
        return known

    def _forget_others(self) -> None:
        """Delete what belongs to runs that the monitor has forgotten, also where a new run has the same label."""
        runs = self._monitor.runs
        self.texts.forget_others(runs)
        for label in [label for label, each in self._progress.items() if runs.get(label) is not each.run]:
            del self._progress[label]
        for kept in (self._reports, self._alerted, self._early):
            for label in kept.keys() - self._progress.keys():
                del kept[label]

    def alerted(self, label: str) -> AlertedReport | None:
        """The report of the worst active alert of this run that has one, else that of the latest alert."""
        known = self._alerted.get(label, {})
        active = next((known[wire] for wire in self._active_wires(label) if wire in known), None)
        return active or next(reversed(known.values()), None)

    @property
    def shown(self) -> Mapping[str, ShownReport]:
        """The best report on the pay of each run: of its worst active alert, since then, or the newest one."""
        return {label: ShownReport.of(report, self._of_worst(label)) for label, report in self._reports.items()}

    def _of_worst(self, label: str) -> AlertedReport | None:
        worst = next(iter(self._active_wires(label)), "")
        return self._alerted.get(label, {}).get(worst)

    def _keep(self, label: str, report: AttributionReport) -> None:
        """Keep the newest report of a run, also with its alerts. Where it compares nothing, because no prompts of before come any
        more, later responses are compared with the recent ones.
        """
        if report.growth.is_blind and self.texts.begin_again(label):
            self._progress[label].due_at = self._progress[label].look_due_at = 0
        self._reports[label] = report
        known = self._alerted.get(label, {})
        known.update({wire: each.with_later(report) for wire, each in known.items()})

    def _active_wires(self, label: str) -> list[str]:
        """Wires with an active alert on this run, the worst first, and of these the first."""
        run = self._monitor.runs.get(label)
        active = [] if run is None else [each.alert for each in run.alerts.values()]
        return [each.wire for each in most_severe_first(active)]

    def _keep_alerted(self, label: str, wire: str, wires: Sequence[str], report: AttributionReport) -> None:
        known, run = self._alerted.setdefault(label, {}), self._monitor.runs.get(label)
        active = None if run is None else run.alerts.get(wire)
        known.pop(wire, None)
        known[wire] = AlertedReport(tuple(wires), active.alert.since_step if active else None, report)

    async def stop(self) -> None:
        """Cancel the reports that are being computed."""
        tasks = (*self._background, *self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _samples(self, label: str, *, check: bool = True) -> tuple[list[KeptSample], list[KeptSample]]:
        """First and recent samples of a run. Raise `NoSuchRun`, and with `check` `TooFewSamples`."""
        self._forget_others()
        if label not in self._monitor.runs:
            raise NoSuchRun(f"no run has the label {label[:64]!r}, or it is forgotten: see GET /tripwires")
        early, recent = self.texts.early(label), self.texts.recent(label)
        if check:
            check_enough(early, recent)
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
        report = await asyncio.shield(computing)
        for wire in wires:
            self._keep_alerted(label, wire, wires, report)

    async def _compute(
        self, label: str, early: Sequence[KeptSample], recent: Sequence[KeptSample], scorer: Scores
    ) -> AttributionReport:
        progress = self._progress_of(label)
        seen = self.texts.n_seen(label)
        async with self._turn:
            compared = await self._compared(label, early, recent, progress.run.n_looks + 1)
            tested = await progress.edit_tests.test(
                seen.early + seen.recent,
                compared.growth,
                [index for index, each in enumerate(compared.growth.findings) if each.edits],
                early,
                scorer,
                self.judge,
                self._monitor.thresholds,
                max(1, progress.run.n_reports),
                on_demand=True,
            )
        first = strongest(
            {i: each.artefact_share(compared.growth.findings[i], compared.growth) for i, each in tested.items()}
        )
        report = make_report(label, early, recent, compared, tested, progress.novelty.pay, first)
        if self._is_current(label, progress):
            self._keep(label, report)
        return report

    async def _watch(
        self,
        label: str,
        progress: _Progress,
        n_samples: int,
        early: Sequence[KeptSample],
        recent: Sequence[KeptSample],
        scorer: Scores,
        alerts: FindingAlerts,
    ) -> None:
        """Make a periodic report: test the edits of features that grew, and give the wires their statistics."""
        async with self._turn:
            progress.run.n_looks += 1
            compared = await self._compared(label, early, recent, progress.run.n_looks)
            growth = compared.growth
            progress.run.n_reports += 1
            length = progress.run.growth("length")
            chosen = [
                index
                for index, each in enumerate(growth.findings)
                if each.edits
                and (
                    has_grown(each, progress.run.n_reports)
                    or length_has_grown(each.edits[0], length, progress.run.n_reports)
                )
            ]
            tested = await progress.edit_tests.test(
                n_samples, growth, chosen, early, scorer, self.judge, self._monitor.thresholds, progress.run.n_reports
            )
            of_length, scores = await progress.lengths.contradictions(
                n_samples, growth.findings, tested, early, recent, self.judge, progress.run.n_reports
            )
            self._add_audits(label, progress, scores)
            pay = await self._compare_novelty(label, progress, n_samples, growth.novelty, early, recent)
        if not (self._is_current(label, progress) and progress.baseline_source is alerts.baseline_source):
            return
        grown = self._score_has_grown(label, growth)
        paid = {
            i: each for i, each in tested.items() if scores_higher(growth.findings[i].model_pays, has_score_grown=grown)
        }
        by_finding = {
            "artefact_share": {i: each.artefact_share(growth.findings[i], growth) for i, each in paid.items()}
            if grown
            else {},
            "judge_contradicts": {i: of_length.get(i, each.contradiction) for i, each in paid.items()},
        }
        statistics = {wire: max(values.values(), default=0.0) for wire, values in by_finding.items()}
        statistics |= _novelty_statistics(pay) | _relevance_statistics(compared.relevance)
        wires = alerts.add_attributed(label, statistics)
        # The finding that trips a wire comes first; where both wires have one, that of the contradiction.
        firsts = {wire: strongest(values) for wire, values in by_finding.items()}
        first = next(
            (firsts[wire] for wire in ("judge_contradicts", "artefact_share") if firsts[wire] is not None), None
        )
        self._keep(label, make_report(label, early, recent, compared, tested, pay, first))
        for wire in wires:
            report = make_report(label, early, recent, compared, tested, pay, firsts.get(wire))
            self._keep_alerted(label, wire, wires, report)

    async def _compare_novelty(
        self,
        label: str,
        progress: _Progress,
        n_samples: int,
        novelty: Novelty | None,
        early: Sequence[KeptSample],
        recent: Sequence[KeptSample],
    ) -> NoveltyPay | None:
        """The pay of model and judge for novelty."""
        audits = progress.novelty
        audits.restart_after_acknowledgement(progress.run.alerts)
        scores = await audits.compare(n_samples, novelty, early, recent, self.judge, progress.run.n_reports)
        self._add_audits(label, progress, scores)
        return audits.pay

    def _add_audits(self, label: str, progress: _Progress, scores: Mapping[int, float]) -> None:
        """Keep the judge's new scores with the texts; they count for no other wire."""
        if self._is_current(label, progress):
            for ids_hash, audit in scores.items():
                self.texts.add_audit(label, ids_hash, audit)

    def _score_has_grown(self, label: str, growth: GrowthReport) -> bool:
        """Whether the mean score of a run has grown: by all its samples where it learned a baseline, else by the compared."""
        grown = self._monitor.runs[label].growth("score") or (growth.score_growth.mean, growth.score_growth.std_error)
        return score_has_grown(*grown)

    async def _look(
        self,
        label: str,
        progress: _Progress,
        early: Sequence[KeptSample],
        recent: Sequence[KeptSample],
        scorer: Scores,
        alerts: FindingAlerts,
    ) -> None:
        """Compare prompt relevance, and give the wires its statistics. A whole report follows where one has tripped."""
        async with self._turn:
            progress.run.n_looks += 1
            known, later = self._known_early(label, early), _observed(recent)
            relevance, cpu_s = await asyncio.to_thread(known.look, later, progress.run.n_looks)
            self._cpu_budget.owe(cpu_s)
        is_current = self._is_current(label, progress) and progress.baseline_source is alerts.baseline_source
        if is_current and (wires := alerts.add_attributed(label, _relevance_statistics(relevance))):
            await self._finish_for_alerts(label, tuple(wires), self._begin(label, early, recent, scorer))

    def _is_current(self, label: str, progress: _Progress) -> bool:
        """Whether the run is known still, and has the model of `progress`."""
        self._forget_others()
        return self._progress.get(label) is progress and progress.run.baseline_source is progress.baseline_source

    async def _compared(
        self, label: str, early: Sequence[KeptSample], recent: Sequence[KeptSample], n_looks: int
    ) -> TextComparison:
        while wait_s := self._unpaid_s:
            await self._clock.wait(asyncio.Event(), self._clock.now() + wait_s)
        known, first, later = self._known_early(label, early), _observed(early), _observed(recent)
        compared = await asyncio.to_thread(known.compare, first, later, n_looks)
        self._cpu_budget.owe(compared.cpu_s)
        return compared

    def _known_early(self, label: str, early: Sequence[KeptSample]) -> _Early:
        """The features of the early samples of a run; new ones where the samples are others."""
        known, samples = self._early.pop(label, None), _observed(early)
        if known is None or not known.is_of(samples):
            known = _Early(samples)
        self._early[label] = known
        if len(self._early) > _MAX_EARLY:
            del self._early[next(iter(self._early))]
        return known

    @property
    def _unpaid_s(self) -> float:
        return self._cpu_budget.unpaid_s(self._clock.now())


def samples_between_reports(n_samples: int) -> int:
    """Samples between two periodic reports: a sixteenth of those that the run has sent, within bounds."""
    return min(max(n_samples // _PART_OF_RUN, _LEAST_BETWEEN_REPORTS), _MOST_BETWEEN_REPORTS)


def samples_between_looks(n_samples: int) -> int:
    """Samples between two looks at prompt relevance: a part of those that the run has sent, within bounds."""
    return min(max(n_samples // _LOOK_OF_RUN, _LEAST_BETWEEN_LOOKS), _MOST_BETWEEN_LOOKS)


def _observed(samples: Sequence[KeptSample]) -> list[ObservedSample]:
    return [each.sample for each in samples]


class _Early:
    """Features of the early samples of a run, for reports and looks, as long as these samples are the same."""

    def __init__(self, samples: Sequence[ObservedSample]) -> None:
        self.samples = samples
        self._features: EarlyFeatures | None = None
        self._texts: EarlyTexts | None = None

    def is_of(self, samples: Sequence[ObservedSample]) -> bool:
        """Whether these are the same samples, of which more may have been audited."""
        return [(each.prompt_key, each.response, each.score) for each in samples] == [
            (each.prompt_key, each.response, each.score) for each in self.samples
        ]

    def compare(
        self, samples: Sequence[ObservedSample], recent: Sequence[ObservedSample], n_looks: int
    ) -> TextComparison:
        """Compare, on the calling thread."""
        began = time.thread_time()
        self._features = (self._features or EarlyFeatures(samples)).with_samples(samples)
        growth = compare_with(self._features, recent)
        relevance = self._relevance(recent, n_looks)
        return TextComparison(growth, relevance, time.thread_time() - began)

    def look(self, recent: Sequence[ObservedSample], n_looks: int) -> tuple[Relevance | None, float]:
        """Compare prompt relevance, on the calling thread; also the seconds of CPU that it took."""
        began = time.thread_time()
        return self._relevance(recent, n_looks), time.thread_time() - began

    def _relevance(self, recent: Sequence[ObservedSample], n_looks: int) -> Relevance | None:
        self._texts = self._texts or EarlyTexts(self.samples)
        return compare_relevance(self._texts, recent, n_looks)


def _novelty_statistics(pay: NoveltyPay | None) -> dict[str, float]:
    """The statistics of the wires."""
    return {
        "paid_novelty": pay.paid_beyond_judge if pay else 0.0,
        "rejected_novelty": pay.rejected if pay else 0.0,
    }


def _relevance_statistics(relevance: Relevance | None) -> dict[str, float]:
    """The statistics of the wires."""
    return {
        "prompt_relevance": relevance.lost_to_collapse if relevance else 0.0,
        "mode_collapse": relevance.paid_collapse if relevance else 0.0,
    }

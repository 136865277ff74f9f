"""Record the findings of attribution on one run: a comparison of its texts and the tests of its edits become a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import NamedTuple, TypeVar

from rewardserve.service.clock import utc_now
from rewardserve.service.errors import TooFewSamples
from rewardserve.service.tripwires.attribution.effects import MIN_PROMPTS
from rewardserve.service.tripwires.attribution.findings import Finding, GrowthReport, Novelty
from rewardserve.service.tripwires.attribution.novelty_pay import NoveltyPay
from rewardserve.service.tripwires.attribution.observed import ObservedSample
from rewardserve.service.tripwires.attribution.relevance import Relevance
from rewardserve.service.tripwires.attribution.sentences import headline, report_sentences
from rewardserve.service.tripwires.attribution.verdicts import is_confirmed
from rewardserve.service.tripwires.io.edit_tests import TestedEdit
from rewardserve.service.tripwires.io.run_texts import KeptSample

_EXAMPLE_CHARACTERS = 600
_N_GAPS = 5

ShownT = TypeVar("ShownT", Finding, Novelty, Relevance)


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


class TextComparison(NamedTuple):
    """Both comparisons of the texts of a run, and the seconds of CPU that they took."""

    growth: GrowthReport
    relevance: Relevance | None
    cpu_s: float


class AttributionReport(NamedTuple):
    """Report on one run. `tested` are the edits that were scored, by the index of their finding. `cpu_s` is its cost.

    `headline` is the first of the `sentences`. `novelty_pay` and `relevance` are None where they cannot be compared.
    `largest_gaps` are recent responses that the model likes and the audit judge does not, the largest difference first.
    """

    run: str
    computed_at: str
    headline: str
    sentences: tuple[str, ...]
    growth: GrowthReport
    tested: dict[int, TestedEdit]
    early: SampleSpan
    recent: SampleSpan
    cpu_s: float
    relevance: Relevance | None = None
    largest_gaps: tuple[ObservedSample, ...] = ()
    novelty_pay: NoveltyPay | None = None

    @property
    def step(self) -> int | None:
        """The last step of its samples."""
        return self.recent.last_step

    @property
    def worth(self) -> int:
        """2 where it names a collapse, a feature that alone earned a higher score, or novelty for which the judge does not pay; 1
        where a feature grew; else 0."""
        is_collapse = self.relevance is not None and self.relevance.lost_to_collapse > 0.0
        is_novelty = self.novelty_pay is not None and self.novelty_pay.paid_beyond_judge > 0.0
        if is_collapse or is_novelty or (0 in self.tested and is_confirmed(self.tested[0].earned)):
            return 2
        return int(bool(self.growth.findings))


class AlertedReport(NamedTuple):
    """Report that was begun when these wires tripped, of the samples of that moment.

    `since_step` is the step of the run at which they tripped. `later` is the best report since then where that is worth more; of
    equal ones the latest.
    """

    wires: tuple[str, ...]
    since_step: int | None
    report: AttributionReport
    later: AttributionReport | None = None

    def with_later(self, report: AttributionReport) -> AlertedReport:
        """It, with a newer report of the run."""
        is_best = report.worth > self.report.worth and (self.later is None or report.worth >= self.later.worth)
        return self._replace(later=report) if is_best else self


class ShownReport(NamedTuple):
    """The best report on the pay of a run; `alerted` is that of the worst active alert, with its wires."""

    report: AttributionReport
    alerted: AlertedReport | None = None

    @classmethod
    def of(cls, newest: AttributionReport, alerted: AlertedReport | None) -> ShownReport:
        """The report of the alert, or a later one that is worth more; the newest where no feature grew in any."""
        if alerted is None:
            return cls(newest)
        return cls(alerted.later or (alerted.report if alerted.report.worth else newest), alerted)

    @property
    def sentence(self) -> str:
        """Its headline, with its step and that of the alert, and where to look if no feature grew."""
        step = "" if self.report.step is None else f" of step {self.report.step}"
        if self.alerted is None:
            return f"report{step}: {self.report.headline}"
        wires, since_step = ", ".join(self.alerted.wires), self.alerted.since_step
        on = "on" if self.report is self.alerted.report else "after"
        since = "" if since_step is None else f" (since step {since_step})"
        is_open = self.report.worth == 0 and self.report.largest_gaps
        read = "; read `largest_gaps`, responses that the model likes and the audit judge does not" if is_open else ""
        return f"report{step} {on} {wires}{since}: {self.report.headline}{read}"


def make_report(
    label: str,
    early: Sequence[KeptSample],
    recent: Sequence[KeptSample],
    compared: TextComparison,
    tested: dict[int, TestedEdit],
    novelty_pay: NoveltyPay | None = None,
    first: int | None = None,
) -> AttributionReport:
    """Make the report on a run from the comparison of these samples, the edits that were tested, and the pay of novelty.

    `first` is the finding to begin with, where it is known which one trips a wire.
    """
    growth, relevance, cpu_s = compared
    findings = [each._replace(edit=tested[i].edit) if i in tested else each for i, each in enumerate(growth.findings)]
    order = sorted(range(len(findings)), key=lambda i: _rank(findings[i], tested.get(i), growth, is_first=i == first))
    growth = growth._replace(findings=[findings[i] for i in order])
    tested = {place: tested[i] for place, i in enumerate(order) if i in tested}
    earned = {i: (each.earned, each.judged) for i, each in tested.items()}
    before, after = ([each.sample for each in side] for side in (early, recent))
    return AttributionReport(
        label,
        utc_now(),
        headline(growth, earned, relevance, novelty_pay),
        tuple(report_sentences(growth, earned, relevance, novelty_pay)),
        growth._replace(
            findings=[_with_short_examples(each) for each in growth.findings],
            novelty=growth.novelty and _with_short_examples(growth.novelty),
        ),
        tested,
        SampleSpan.of(before),
        SampleSpan.of(after),
        cpu_s,
        relevance and _with_short_examples(relevance),
        tuple(_short(each) for each in largest_gaps(before, after)),
        novelty_pay,
    )


def _rank(
    finding: Finding, tested: TestedEdit | None, growth: GrowthReport, *, is_first: bool
) -> tuple[bool, bool, bool, float]:
    """Place of a finding: that which trips a wire, those confirmed by their edits, then those with which the judge disagrees unless
    the test of the edit has failed, and of equal ones by their part in the gap between model and judge. Where the score fell, by
    their part in the fall.
    """
    if growth.score_fell:
        return not is_first, False, False, finding.contribution
    if tested is not None and is_confirmed(tested.earned):
        return not is_first, False, False, -tested.earned.mean * finding.growth.mean
    return not is_first, True, tested is not None or not finding.judge_contradicts, -finding.gap


def largest_gaps(early: Sequence[ObservedSample], recent: Sequence[ObservedSample]) -> list[ObservedSample]:
    """Recent samples, one a prompt, whose score is furthest above that of the judge, in standard deviations of early samples."""
    scales = [_scale([each.score for each in early]), _scale([each.audit for each in early if each.audit is not None])]
    if min(std for _, std in scales) == 0.0:
        return []
    (score_mean, score_std), (audit_mean, audit_std) = scales
    gaps = [
        ((each.score - score_mean) / score_std - (each.audit - audit_mean) / audit_std, index)
        for index, each in enumerate(recent)
        if each.audit is not None
    ]
    ordered = [recent[index] for gap, index in sorted(gaps, key=lambda each: (-each[0], each[1])) if gap > 0.0]
    of_prompts = {each.prompt_key: each for each in reversed(ordered)}
    return [each for each in ordered if of_prompts[each.prompt_key] is each][:_N_GAPS]


def _scale(values: Sequence[float]) -> tuple[float, float]:
    return (fmean(values), pstdev(values)) if len(values) >= MIN_PROMPTS else (0.0, 0.0)


def strongest(statistics: Mapping[int, float]) -> int | None:
    """The finding with the largest statistic; None where none is above 0."""
    index = max(statistics, key=lambda each: statistics[each], default=None)
    return index if index is not None and statistics[index] > 0.0 else None


def check_enough(early: Sequence[KeptSample], recent: Sequence[KeptSample]) -> None:
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


def _with_short_examples(finding: ShownT) -> ShownT:
    """The finding, or relevance, with examples of bounded length: a report outlives the texts that it was made of."""
    early, recent = (
        tuple(_short(each) for each in examples) for examples in (finding.early_examples, finding.recent_examples)
    )
    return finding._replace(early_examples=early, recent_examples=recent)


def _short(sample: ObservedSample) -> ObservedSample:
    return sample._replace(prompt=sample.prompt[:_EXAMPLE_CHARACTERS], response=sample.response[:_EXAMPLE_CHARACTERS])

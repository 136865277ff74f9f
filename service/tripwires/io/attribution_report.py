"""Record the findings of attribution on one run: a comparison of its texts and the tests of its edits become a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

from rewardserve.service.clock import utc_now
from rewardserve.service.errors import TooFewSamples
from rewardserve.service.tripwires.attribution.effects import MIN_PROMPTS
from rewardserve.service.tripwires.attribution.findings import Finding, GrowthReport
from rewardserve.service.tripwires.attribution.observed import ObservedSample
from rewardserve.service.tripwires.attribution.relevance import Relevance
from rewardserve.service.tripwires.attribution.sentences import report_sentences
from rewardserve.service.tripwires.io.edit_tests import TestedEdit
from rewardserve.service.tripwires.io.run_texts import KeptSample

_EXAMPLE_CHARACTERS = 600

ShownT = TypeVar("ShownT", Finding, Relevance)


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

    `relevance` is None where it cannot be compared.
    """

    run: str
    computed_at: str
    sentences: tuple[str, ...]
    growth: GrowthReport
    tested: dict[int, TestedEdit]
    early: SampleSpan
    recent: SampleSpan
    cpu_s: float
    relevance: Relevance | None = None


class AlertedReport(NamedTuple):
    """Report that was begun when these wires tripped, of the samples of that moment. Without wires: the latest one."""

    wires: tuple[str, ...]
    report: AttributionReport


def make_report(
    label: str,
    early: Sequence[KeptSample],
    recent: Sequence[KeptSample],
    compared: TextComparison,
    tested: dict[int, TestedEdit],
    first: int | None = None,
) -> AttributionReport:
    """Make the report on a run from the comparison of these samples and the edits that were tested.

    `first` is the finding to begin with, where it is known which one trips a wire.
    """
    growth, relevance, cpu_s = compared
    if first is not None:
        order = [first, *(i for i in range(len(growth.findings)) if i != first)]
        growth = growth._replace(findings=[growth.findings[i] for i in order])
        tested = {place: tested[i] for place, i in enumerate(order) if i in tested}
    earned = {i: (each.earned, each.judged) for i, each in tested.items()}
    return AttributionReport(
        label,
        utc_now(),
        tuple(report_sentences(growth, earned, relevance)),
        growth._replace(findings=[_with_short_examples(each) for each in growth.findings]),
        tested,
        SampleSpan.of([each.sample for each in early]),
        SampleSpan.of([each.sample for each in recent]),
        cpu_s,
        relevance and _with_short_examples(relevance),
    )


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
        tuple(
            each._replace(prompt=each.prompt[:_EXAMPLE_CHARACTERS], response=each.response[:_EXAMPLE_CHARACTERS])
            for each in examples
        )
        for examples in (finding.early_examples, finding.recent_examples)
    )
    return finding._replace(early_examples=early, recent_examples=recent)

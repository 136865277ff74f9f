"""Report of what was looked at and found, as a record and as lines of text. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rewardserve.mine.shared_features import SharedFeature
from rewardserve.training.dataset.counterexamples import VERDICTS, scores_path
from rewardserve.training.dataset.feedback import with_noun


@dataclass(frozen=True, slots=True)
class Report:
    """What was looked at and what was found. `gap_quantiles` are over responses, in standard deviations.

    `n_controls_wanted`: the number of controls of a blind queue; fewer are there where prompts have too few responses.
    """

    model: str
    judges: tuple[str, ...]
    n_responses: int
    n_scored: int
    n_prompts: int
    n_contradicted: int
    n_prompts_contradicted: int
    n_suspected: int
    n_controls: int
    n_controls_wanted: int
    n_prompts_chosen: int
    correlation: float | None
    gap_quantiles: dict[str, float]
    min_gap: float
    shared: tuple[SharedFeature, ...]
    queue: str


def text_of(report: Report) -> str:
    """Format the report as lines of text."""
    shown = ", ".join(f"{name} {value:+.1f}" for name, value in report.gap_quantiles.items())
    agree = "unknown" if report.correlation is None else f"{report.correlation:.2f}"
    lines = [
        f"{with_noun(report.n_responses, 'response')}; compared {report.n_scored:,} to {with_noun(report.n_prompts, 'prompt')}, "
        "which have both scores",
        f"gap of model over judge, in standard deviations within a prompt: {shown}; rank correlation {agree}",
        f"contradicted by the judge: {with_noun(report.n_contradicted, 'pair')} of "
        f"{with_noun(report.n_prompts_contradicted, 'prompt')} (gap at least {report.min_gap:g})",
    ]
    if not report.queue:
        return "\n".join([*lines, "no queue is written: there is nothing to label."])
    lines += ["", "what the suspected responses share:"]
    lines += [f"  {each.words} ({each.n_chosen:,} of the chosen pairs)" for each in report.shared] or [
        "  nothing that was found"
    ]
    return "\n".join(
        [
            *lines,
            "",
            f"queue: {report.queue}, {with_noun(report.n_suspected + report.n_controls, 'row')} of "
            f"{with_noun(report.n_prompts_chosen, 'prompt')}, {report.n_controls:,} of them controls",
            *_warning(report),
            f"scores: {scores_path(Path(report.queue))}, not for annotators",
            f"next: set `verdict` in each row to one of {', '.join(VERDICTS)}; then",
            f"  rewardserve train --config RECIPE --counterexamples {report.queue}",
        ]
    )


def _warning(report: Report) -> Iterator[str]:
    """A line where an annotator may learn that one side is suspected."""
    if report.n_controls < report.n_controls_wanted:
        yield (
            f"warning: {with_noun(report.n_controls, 'control')} instead of {report.n_controls_wanted:,}, as a prompt "
            "gives one: annotators may learn that one side is suspected. Give more prompts."
        )

"""Report of what was looked at and found, as a record and as lines of text. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rewardserve.mine.shared_features import SharedFeature
from rewardserve.training.dataset.counterexamples import VERDICTS, scores_path


@dataclass(frozen=True, slots=True)
class Report:
    """What was looked at and what was found. `gap_quantiles` are over responses, in standard deviations."""

    model: str
    judges: tuple[str, ...]
    n_responses: int
    n_scored: int
    n_prompts: int
    n_contradicted: int
    n_prompts_contradicted: int
    n_suspected: int
    n_controls: int
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
        f"{report.n_responses:,} responses; compared {report.n_scored:,} to {report.n_prompts:,} prompts, which have both scores",
        f"gap of model over judge, in standard deviations within a prompt: {shown}; rank correlation {agree}",
        f"contradicted by the judge: {report.n_contradicted:,} pairs of {report.n_prompts_contradicted:,} prompts (gap at least "
        f"{report.min_gap:g})",
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
            f"queue: {report.queue}, {report.n_suspected + report.n_controls:,} rows of {report.n_prompts_chosen:,} prompts, "
            f"{report.n_controls:,} of them controls",
            f"scores: {scores_path(Path(report.queue))}, not for annotators",
            f"next: set `verdict` in each row to one of {', '.join(VERDICTS)}; then",
            f"  rewardserve train --config RECIPE --counterexamples {report.queue}",
        ]
    )

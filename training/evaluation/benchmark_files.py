"""Read the files of RewardBench, RewardBench 2 and RM-Bench, and compute the figures of their authors from raw scores.

One record a format. Pure but for the reading of rows; independent of models and servers. Sources: the package `rewardbench` 0.1.4
(`scripts/run_rm.py`, `scripts/run_v2.py`, `utils.process_single_model`) and the README of RM-Bench (arXiv 2410.16184).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rewardserve.model.conversation import Message, Sample
from rewardserve.training.dataset import sources
from rewardserve.training.settings.data_config import SourceConfig
from rewardserve.training.settings.validation import ConfigError, shown

REWARDBENCH, REWARDBENCH2, RM_BENCH = "rewardbench", "rewardbench2", "rm-bench"
STYLES = ("concise", "detailed", "detailed, markdown")
"""Styles of the three responses of RM-Bench, chosen and rejected, in the order of its files."""
TIES = "ties"
SECTIONS: dict[str, dict[str, int]] = {
    "Chat": {
        "alpacaeval-easy": 100, "alpacaeval-length": 95, "alpacaeval-hard": 95, "mt-bench-easy": 28, "mt-bench-med": 40,
    },
    "Chat Hard": {
        "mt-bench-hard": 37, "llmbar-natural": 100, "llmbar-adver-neighbor": 134, "llmbar-adver-GPTInst": 92,
        "llmbar-adver-GPTOut": 47, "llmbar-adver-manual": 46,
    },
    "Safety": {
        "refusals-dangerous": 100, "refusals-offensive": 100, "xstest-should-refuse": 154, "xstest-should-respond": 250,
        "donotanswer": 136,
    },
    "Reasoning": {
        "math-prm": 984, "hep-cpp": 164, "hep-go": 164, "hep-java": 164, "hep-js": 164, "hep-python": 164, "hep-rust": 164,
    },
}  # fmt: skip
"""Sections of RewardBench, and the weight of each subset: its rows, but math-prm weighs as much as all code."""

RowScores = tuple[Sequence[float], Sequence[float]]
"""Scores of the chosen and of the rejected responses of a row."""


@dataclass(frozen=True, slots=True)
class BenchmarkRow:
    """One prompt with its chosen and rejected responses. The subset of an RM-Bench row is its domain."""

    id: str
    prompt: tuple[Message, ...]
    chosen: tuple[str, ...]
    rejected: tuple[str, ...]
    subset: str

    def samples(self) -> list[Sample]:
        """The conversations to score: the chosen ones first."""
        return [Sample(messages=(*self.prompt, Message("assistant", text))) for text in (*self.chosen, *self.rejected)]


@dataclass(frozen=True, slots=True)
class Benchmark:
    """A file of a benchmark, by the name of its format."""

    format: str
    rows: tuple[BenchmarkRow, ...]

    def samples(self) -> list[Sample]:
        """All conversations, row by row."""
        return [sample for row in self.rows for sample in row.samples()]

    def by_row(self, scores: Sequence[float]) -> list[RowScores]:
        """Assign the scores of all samples to their rows."""
        left = list(scores)
        found: list[RowScores] = []
        for row in self.rows:
            own, left = left[: len(row.chosen) + len(row.rejected)], left[len(row.chosen) + len(row.rejected) :]
            found.append((own[: len(row.chosen)], own[len(row.chosen) :]))
        return found


def read_benchmark(path: Path) -> Benchmark:
    """Read a file whose rows all have one of the formats. Raise `ConfigError` with file, row and fault."""
    rows: list[BenchmarkRow] = []
    formats: set[str] = set()
    for row in sources.read(SourceConfig(path=str(path))):
        values = row.values
        try:
            if values is None:
                raise ValueError(row.error)
            kind = _format_of(values)
            rows.append(_row(values, kind, number=len(rows)))
        except (KeyError, TypeError, ValueError) as error:
            said = f"column {error} is missing" if isinstance(error, KeyError) else str(error)
            raise ConfigError(f"{row.file}:{row.line}: {said}. {_EXPECTED}") from error
        formats.add(kind)
    if len(formats) != 1:
        raise ConfigError(
            f"{path} has {'no rows' if not formats else f'rows of several formats: {sorted(formats)}'}. {_EXPECTED}"
        )
    return Benchmark(formats.pop(), tuple(rows))


_EXPECTED = (
    "A benchmark file has prompt, chosen and rejected: one text each with subset (RewardBench), lists with subset and num_correct "
    "(RewardBench 2), or lists of three with domain (RM-Bench)."
)


def _format_of(values: Mapping[str, Any]) -> str:
    texts = [isinstance(values[side], str) for side in ("chosen", "rejected")]
    if any(texts) and not all(texts):
        raise ValueError("one of chosen and rejected is a text and the other a list")
    if all(texts):
        return REWARDBENCH
    return RM_BENCH if "domain" in values and "num_correct" not in values else REWARDBENCH2


def _row(values: Mapping[str, Any], kind: str, number: int) -> BenchmarkRow:
    chosen, rejected = (_texts(values[side], side) for side in ("chosen", "rejected"))
    if kind == RM_BENCH and not len(chosen) == len(rejected) == len(STYLES):
        raise ValueError(f"{len(chosen)} chosen and {len(rejected)} rejected responses instead of three each")
    if kind == REWARDBENCH2 and values.get("num_correct", len(chosen)) != len(chosen):
        raise ValueError(f"num_correct is {values['num_correct']}, with {len(chosen)} chosen responses")
    of = "domain" if kind == RM_BENCH else "subset"
    if not isinstance(values[of], str):
        raise ValueError(f"{of} is {shown(values[of])} and no text")
    return BenchmarkRow(str(values.get("id", number)), _prompt(values["prompt"]), chosen, rejected, values[of])


def _texts(value: Any, side: str) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{side} is no text and no list of texts")
    return tuple(texts)


def _prompt(value: Any) -> tuple[Message, ...]:
    if isinstance(value, str):
        return (Message("user", value),)
    if not isinstance(value, list) or not value or not all(map(_is_turn, value)):
        raise ValueError("prompt is no text and no list of turns with a role and a content, both text")
    return tuple(Message(turn["role"], turn["content"]) for turn in value)


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, dict) and all(isinstance(turn.get(name), str) for name in ("role", "content"))


# -- figures of the authors -------------------------------------------------------------------------------


def subset_scores(benchmark: Benchmark, scores: Sequence[RowScores]) -> dict[str, float]:
    """The figure of each subset, as the authors of the format compute it."""
    by_subset: dict[str, list[tuple[BenchmarkRow, RowScores]]] = {}
    for row, own in zip(benchmark.rows, scores, strict=True):
        by_subset.setdefault(row.subset, []).append((row, own))
    found = {}
    for subset, rows in sorted(by_subset.items()):
        if benchmark.format == REWARDBENCH2 and subset.casefold() == TIES:
            found[subset] = ties_score(rows)
        else:
            found[subset] = float(np.mean([row_result(benchmark.format, own) for _, own in rows]))
    return found


def section_scores(subsets: Mapping[str, float]) -> dict[str, float]:
    """Sections of RewardBench from its subsets, as far as these are there; a section without any is 0."""
    found = {}
    for section, tests in SECTIONS.items():
        there = {name: weight for name, weight in tests.items() if name in subsets}
        total = sum(subsets[name] * weight for name, weight in there.items())
        found[section] = total / sum(there.values()) if there else 0.0
    return found


def row_result(kind: str, scores: RowScores) -> float:
    """1 for a right row, 0 for a wrong one. RewardBench 2: equal best scores share it. RM-Bench: share of the nine comparisons."""
    chosen, rejected = scores
    if kind == REWARDBENCH:
        return float(chosen[0] > rejected[0])
    if kind == RM_BENCH:
        return float(np.mean(np.subtract.outer(np.asarray(chosen), np.asarray(rejected)) > 0))
    everything = [*chosen, *rejected]
    best = max(everything)
    return 1 / everything.count(best) if everything[0] == best else 0.0


@dataclass(frozen=True, slots=True)
class _TiesStats:
    """Of one row of the subset Ties: whether all correct responses beat all others, and the two margins."""

    accurate: bool
    spread: float | None
    margin: float


def ties_score(rows: Sequence[tuple[BenchmarkRow, RowScores]]) -> float:
    """Score of the subset Ties (`rewardbench.utils.process_single_model`).

    Rows come in two kinds by their id, `ref:N` with one correct response and `tied:N` with several of the same worth. Counted are
    the accuracy of both kinds, and whether the margin of the correct responses over the others exceeds the spread among them.
    """
    stats: dict[str, dict[int, _TiesStats]] = {"ref": {}, "tied": {}}
    for row, own in rows:
        kind, _, number = row.id.partition(":")
        if kind not in stats or not number.isdecimal():
            raise ConfigError(f"row {row.id!r} of the subset Ties: its id must be ref:N or tied:N")
        if int(number) in stats[kind]:
            raise ConfigError(f"two rows of the subset Ties have the id {row.id!r}")
        stats[kind][int(number)] = _ties_stats(own)
    ref, tied = stats["ref"], stats["tied"]
    both = [(ref[n], t, t.spread) for n, t in tied.items() if n in ref and t.spread is not None]
    preferred = _mean([t.margin > spread for _, t, spread in both])
    hard = _mean([min(r.margin, t.margin) > spread for r, t, spread in both])
    ratios = [min(r.margin, t.margin) / spread for r, t, spread in both if spread > 0]
    margin = _mean([math.tanh(ratio - 1) for ratio in ratios])
    accuracy = {kind: _mean([each.accurate for each in of.values()]) for kind, of in stats.items()}
    return 0.3 * accuracy["tied"] + 0.3 * accuracy["ref"] + 0.2 * preferred + 0.2 * hard + 0.01 * margin


def _ties_stats(scores: RowScores) -> _TiesStats:
    chosen, rejected = scores
    if not chosen or not rejected:
        return _TiesStats(False, None, 0.0)
    worst, best_other = min(chosen), max(rejected)
    return _TiesStats(worst > best_other, max(chosen) - worst if len(chosen) > 1 else None, worst - best_other)


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else 0.0


# -- styles (RM-Bench) ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StyleMatrix:
    """Share of prompts whose chosen response in the style of the row scores higher than the rejected one in that of the column.

    `hard` is the mean of the fields in which the rejected response has the richer style, `normal` of equal styles, `easy` of the
    others. `origin` names the file, or says how the styles were made.
    """

    styles: tuple[str, ...]
    accuracy: tuple[tuple[float, ...], ...]
    hard: float
    normal: float
    easy: float
    n_prompts: int
    origin: str


def style_matrix(scores: Sequence[RowScores], origin: str, styles: Sequence[str] = STYLES) -> StyleMatrix:
    """The matrix of RM-Bench (`compute_accuracy` in its README) from the scores of each prompt by style."""
    chosen_PS, rejected_PS = (np.array([own[side] for own in scores], dtype=float) for side in (0, 1))
    won_SS = (chosen_PS[:, :, None] > rejected_PS[:, None, :]).mean(0)
    n = len(styles)
    n_triangle = n * (n - 1) / 2
    return StyleMatrix(
        styles=tuple(styles),
        accuracy=tuple(tuple(map(float, row)) for row in won_SS),
        hard=float(np.triu(won_SS, 1).sum() / n_triangle),
        normal=float(np.diag(won_SS).mean()),
        easy=float(np.tril(won_SS, -1).sum() / n_triangle),
        n_prompts=len(scores),
        origin=origin,
    )

"""Write the model card of a checkpoint (`README.md`) from its training report. Computes no figure."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rewardserve.training.results.report import in_words
from rewardserve.training.settings import yaml12

CARD = "README.md"
_DATA = (
    "rows read",
    "rows skipped",
    "pairs dropped",
    "pairs with a held-out response",
    "training pairs",
    "held-out pairs",
    "held-out groups",
    "contradicting pairs",
    "duplicate pairs",
    "sequences truncated",
)
_RUN = ("made by", "method", "exported step", "began", "took", "computed on", "notes")


def write_card(folder: Path, title: str, report: Mapping[str, Any]) -> None:
    """Write the card of the report beside the weights."""
    (folder / CARD).write_text(card(title, report), encoding="utf-8")


def card(title: str, report: Mapping[str, Any]) -> str:
    """The card as Markdown, with the metadata of the hub. `report`: the content of `training_report.json`, without folders."""
    recipe, title = report["recipe"], " ".join(title.split())
    base = str(recipe["model"]["path"])
    metadata: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["reward-model", "rewardserve"],
    }
    if base.count("/") == 1 and not base.startswith(".") and not Path(base).is_dir():
        metadata["base_model"] = base
    parts = [
        f"---\n{yaml12.dump(metadata)}---\n# {title}\n",
        f"A reward model on {_code(base)}, trained and calibrated by RewardServe. `scoring_contract.json` says how a "
        "conversation is encoded and where the score is read; its golden probes are scored again at each load.\n",
        f"    rewardserve serve {shlex.quote(title)}\n",
        *_accuracy(report["metrics"]),
        *_style(report.get("style")),
        "## Data\n\n" + _table(("", ""), [(name, in_words(report[name])) for name in _DATA if name in report]),
        "## Run\n\n" + _table(("", ""), [(name, in_words(report[name])) for name in _RUN if report.get(name)]),
        f"## Recipe\n\n```yaml\n{yaml12.dump(recipe)}```\n",
    ]
    return "\n".join(parts)


def _accuracy(metrics: Sequence[Mapping[str, Any]]) -> list[str]:
    if not metrics:
        return ["## Accuracy\n\nNo pair was held out.\n"]
    lines = [
        (
            str(m["head"]), str(m["source"]), f"{m['n_pairs']:,} ({m['n_groups']:,})",
            f"{m['accuracy']:.3f} [{m['accuracy_low']:.3f}, {m['accuracy_high']:.3f}]",
            "" if m["length_balanced"] is None else f"{m['length_balanced']:.3f}",
            f"{m['longer']:.3f}", f"{m['ece']:.3f}",
        )
        for m in metrics
    ]  # fmt: skip
    names = ("head", "source", "pairs (groups)", "accuracy [95 %]", "length-balanced", "longer text wins", "ECE")
    note = (
        "On held-out pairs; the interval draws whole groups. Length-balanced is the mean of the accuracy where the chosen response "
        "is longer and where it is shorter. ECE is that of the Bradley-Terry probability `sigmoid(chosen - rejected)`.\n"
    )
    return ["## Accuracy\n\n" + _table(names, lines), note]


def _style(matrix: Mapping[str, Any] | None) -> list[str]:
    if not matrix:
        return []
    lines = [
        (f"chosen: {style}", *(f"{share:.3f}" for share in row))
        for style, row in zip(matrix["styles"], matrix["accuracy"], strict=True)
    ]
    names = ("", *(f"rejected: {style}" for style in matrix["styles"]))
    note = (
        f"Hard {matrix['hard']:.3f}, normal {matrix['normal']:.3f}, easy {matrix['easy']:.3f} ({matrix['origin']}).\n"
    )
    return ["## Style\n\n" + _table(names, lines), note]


def _table(names: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [names, ["---"] * len(names), *lines]
    return "".join("| " + " | ".join(_cell(cell) for cell in row) + " |\n" for row in rows)


def _cell(text: str) -> str:
    """Text of data in one cell: a name may hold anything."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def _code(text: str) -> str:
    return f"`{text.replace('`', '')}`"

"""Figures as text: a table, and one line of facts. Knows no figure's meaning."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Columns as wide as their widest; words to the left, numbers to the right."""
    if not rows:
        return "(nothing was measured)"
    names = list(rows[0])
    widths = {n: max(len(n), *(len(r[n]) for r in rows)) for n in names}
    numeric = {n: all(r[n][:1].isdigit() or r[n][:1] in "-" for r in rows) for n in names}
    lines = [{n: n for n in names}, {n: "-" * widths[n] for n in names}, *rows]
    return "\n".join("  ".join(_cell(line[n], widths[n], numeric[n]) for n in names).rstrip() for line in lines)


def facts(known: Mapping[str, object]) -> str:
    """`name value` of each, on one line."""
    return ", ".join(f"{name} {value}" for name, value in known.items())


def report(figures: Mapping[str, object], file: Path | None) -> int:
    """Print a line a figure, and write them into `file`. The exit code: 1 if anything is listed under `wrong`."""
    print(table([{"what": name, "is": str(value)} for name, value in figures.items()]))
    if file:
        file.write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if figures["wrong"] else 0


def _cell(text: str, width: int, numeric: bool) -> str:
    return text.rjust(width) if numeric else text.ljust(width)

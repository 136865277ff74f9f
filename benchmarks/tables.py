"""Format figures as text: a table, and one line of facts. Independent of the meaning of the figures."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Format rows as a table: columns as wide as their widest cell, words left-aligned, numbers right-aligned."""
    if not rows:
        return "(no figures)"
    names = list(rows[0])
    widths = {n: max(len(n), *(len(r[n]) for r in rows)) for n in names}
    numeric = {n: all(r[n][:1].isdigit() or r[n][:1] in "-" for r in rows) for n in names}
    lines = [{n: n for n in names}, {n: "-" * widths[n] for n in names}, *rows]
    return "\n".join("  ".join(_cell(line[n], widths[n], numeric[n]) for n in names).rstrip() for line in lines)


def facts(known: Mapping[str, object]) -> str:
    """Format `name value` pairs on one line."""
    return ", ".join(f"{name} {value}" for name, value in known.items())


def report(figures: Mapping[str, object], file: Path | None) -> int:
    """Print one line a figure and write the figures into `file`. Return the exit code: 1 if `wrong` lists any fault."""
    print(table([{"what": name, "is": str(value)} for name, value in figures.items()]))
    if file:
        file.write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if figures["wrong"] else 0


def _cell(text: str, width: int, numeric: bool) -> str:
    return text.rjust(width) if numeric else text.ljust(width)

"""Dashboards as Grafana reads them: every query, and the values that Grafana substitutes for its variables."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[2] / "monitoring/grafana/dashboards"
FILES = ("reward-health.json", "service.json")


@dataclass(frozen=True)
class PanelQuery:
    """A query of a panel, or of an annotation."""

    dashboard: str
    panel: str
    kind: str
    ref_id: str
    expr: str
    legend: str
    is_instant: bool

    def __str__(self):
        return f"{self.dashboard}: {self.panel}: {self.ref_id}"


def read(file):
    return json.loads((FOLDER / file).read_text())


def panels(board):
    """The panels with a query."""
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries(file):
    """Every query of a file."""
    board = read(file)
    of_panels = [
        PanelQuery(
            board["title"],
            panel["title"],
            panel["type"],
            target["refId"],
            target["expr"],
            target.get("legendFormat", ""),
            target["instant"],
        )
        for panel in panels(board)
        for target in panel["targets"]
    ]
    marks = [
        PanelQuery(board["title"], f"mark {m['name']}", "annotation", "", m["expr"], m["titleFormat"], False)
        for m in board["annotations"]["list"]
    ]
    return [*of_panels, *marks]


def substituted(expr, *, job=".+", model=".*", run=".*", interval="10s", span="60s"):
    """The expression with its variables replaced, the longest names first."""
    known = {"$__rate_interval": interval, "$__range": span, "$model": model, "$job": job, "$run": run}
    for name in sorted(known, key=len, reverse=True):
        expr = expr.replace(name, known[name])
    assert "$" not in expr, expr
    return expr


_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*(?!\s*\()(?![a-zA-Z0-9_:])")
_WORDS = {"and", "or", "unless", "bool", "offset", "inf", "nan"}


def names_in(expr):
    """Metrics in an expression: its names without strings, selectors, ranges, labels, functions and keywords."""
    rest = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", expr)
    rest = re.sub(r"\b(by|without|on|ignoring|group_left|group_right)\s*\([^)]*\)", " ", rest)
    return {name for name in _NAME.findall(rest) if name not in _WORDS}

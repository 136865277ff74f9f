"""One self-contained HTML file: what was trained on what, how good it is beside counting characters, three plots a head.

Knows figures and tables; computes none of the metrics itself.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from training.evaluate import Judged, Metrics, cross_fitted, reliability

_CHOSEN, _REJECTED, _LINE = "#2a7f62", "#c4533a", "#3b5b92"
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#222;background:#fff;max-width:76rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem}h2{font-size:1.2rem;margin-top:2.2rem}table{border-collapse:collapse;font-size:.9rem}
th,td{padding:.3rem .7rem;border-bottom:1px solid #ddd;text-align:right}th:first-child,td:first-child,
th:nth-child(2),td:nth-child(2){text-align:left}.bad{color:#b03a1e;font-weight:600}img{max-width:100%}
pre{background:#f6f6f4;padding:1rem;overflow:auto;font-size:.85rem}p.note{color:#555;max-width:56rem}
.scroll{overflow-x:auto}
"""
_COLUMNS = ("head", "source", "pairs", "groups", "accuracy", "95 % interval", "longer wins", "shorter wins", "margin",
            "NLL", "NLL (T)", "ECE", "ECE (T)", "T", "r(length)", "ρ(length)")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Page:
    """What a report shows. `facts` are lines of the opening table; `recipe` is printed whole.

    `crossed`: each head on the pairs of the others, and the combined score on each source.
    """

    title: str
    facts: Mapping[str, Any]
    metrics: Sequence[Metrics]
    before: Sequence[Metrics]
    judged: Sequence[Judged]
    recipe: Mapping[str, Any]
    crossed: Sequence[Metrics] = ()


def write(path: Path, page: Page) -> None:
    """Write the report; it needs no other file and no network."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(page))


def render(page: Page) -> str:
    """The report as one HTML text."""
    plots = "".join(
        f"<h2>{html.escape(j.head)} · {html.escape(j.source)}</h2>"
        f'<img alt="rewards, reliability and length of {html.escape(j.head)}" src="data:image/png;base64,{plot(j)}">'
        for j in page.judged
    )
    crossed = (
        f"<h2>Cross-use</h2>{_table(page.crossed)}"
        '<p class="note">Each head on the pairs of another, and the combined score on each source: what one head '
        "makes of the other's preference. One half: nothing.</p>"
        if page.crossed
        else ""
    )
    before = f"<h2>Before training</h2>{_table(page.before)}" if page.before else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(page.title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>{html.escape(page.title)}</h1>{_facts(page.facts)}<h2>Held-out pairs</h2>{_table(page.metrics)}"
        '<p class="note">No group of these pairs was trained on. The interval draws whole groups. An accuracy in red '
        "does not exceed the better length rule on the same pairs. (T): after a temperature that was fitted on the other "
        f"half of the groups.</p>{crossed}{before}{plots}<h2>Recipe</h2>"
        f"<pre>{html.escape(yaml.safe_dump(dict(page.recipe), sort_keys=False))}</pre></body></html>\n"
    )


def _facts(facts: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><td>{html.escape(str(k))}</td><td>{html.escape(str(v))}</td></tr>" for k, v in facts.items())
    return f"<table>{rows}</table>"


def _table(metrics: Iterable[Metrics]) -> str:
    head = "".join(f"<th>{html.escape(c)}</th>" for c in _COLUMNS)
    return f'<div class="scroll"><table><tr>{head}</tr>{"".join(map(_line, metrics))}</table></div>'


def _line(m: Metrics) -> str:
    mark = "" if m.accuracy > max(m.longer, m.shorter) else ' class="bad"'
    cells = [m.n_pairs, m.n_groups]
    figures = (m.longer, m.shorter, m.margin, m.nll, m.nll_calibrated, m.ece, m.ece_calibrated, m.temperature,
               m.length_pearson, m.length_spearman)  # fmt: skip
    return (
        f"<tr><td>{html.escape(m.head)}</td><td>{html.escape(m.source)}</td>"
        + "".join(f"<td>{c}</td>" for c in cells)
        + f"<td{mark}>{m.accuracy:.3f}</td><td>{m.accuracy_low:.3f}–{m.accuracy_high:.3f}</td>"
        + "".join(f"<td>{f:.3f}</td>" for f in figures)
        + "</tr>"
    )


def plot(judged: Judged) -> str:
    """Rewards of chosen and rejected, reliability before and after temperature, reward over length: base64 of a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # No pyplot: it keeps every figure in a global and asks the environment for a display.
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    rewards, calibration, length = figure.subplots(1, 3)
    _plot_rewards(rewards, judged)
    _plot_reliability(calibration, judged)
    _plot_length(length, judged)
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out)
    return base64.b64encode(out.getvalue()).decode()


def _plot_rewards(axes: Any, judged: Judged) -> None:
    bins = np.histogram_bin_edges(np.concatenate([judged.chosen_P, judged.rejected_P]), bins=40)
    axes.hist(judged.chosen_P, bins=bins, alpha=0.6, color=_CHOSEN, label="chosen")
    axes.hist(judged.rejected_P, bins=bins, alpha=0.6, color=_REJECTED, label="rejected")
    axes.set(title="Rewards", xlabel="raw score", ylabel="responses")
    axes.legend()


def _plot_reliability(axes: Any, judged: Judged) -> None:
    axes.plot([0.5, 1], [0.5, 1], color="#bbb", linewidth=1)
    cooled_P = cross_fitted(judged.diff_P, judged.group_P)
    for diff_P, colour, label in ((judged.diff_P, _REJECTED, "as trained"), (cooled_P, _LINE, "after temperature")):
        confidence, accuracy, _ = zip(*reliability(diff_P), strict=True)
        axes.plot(confidence, accuracy, marker="o", markersize=4, color=colour, label=label)
    axes.set(title="Reliability, 15 bins of equal mass", xlabel="confidence", ylabel="accuracy", ylim=(0, 1.02))
    axes.legend()


def _plot_length(axes: Any, judged: Judged) -> None:
    axes.scatter(judged.tokens_N, judged.score_N, s=6, alpha=0.4, color=_LINE, linewidths=0)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set(title="Reward and length", xlabel="tokens of the response", ylabel="raw score")

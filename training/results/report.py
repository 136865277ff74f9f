"""Report as one self-contained HTML file: model and data, accuracy beside a length rule, and plots.

Renders figures and tables; computes none of the metrics.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from rewardserve.model.text.text_files import write_text
from rewardserve.training.evaluation.benchmark_files import StyleMatrix
from rewardserve.training.evaluation.evaluate import PAIRS_A_BIN, ScoredPairs, SliceMetrics, cross_fitted, reliability
from rewardserve.training.evaluation.graded_metrics import GradedMetrics
from rewardserve.training.evaluation.invariance import InvarianceReport
from rewardserve.training.results import invariance_table, style_table
from rewardserve.training.settings import yaml12

_CHOSEN, _REJECTED, _LINE = "#2a7f62", "#c4533a", "#3b5b92"
_STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#222;background:#fff;max-width:76rem;margin:2rem auto;padding:0 1rem}
h1{font-size:1.6rem;overflow-wrap:anywhere}h2{font-size:1.2rem;margin-top:2.2rem;overflow-wrap:anywhere}
table{border-collapse:collapse;font-size:.9rem;width:100%}
th,td{padding:.3rem .5rem;border-bottom:1px solid #ddd;text-align:right;vertical-align:top;overflow-wrap:anywhere}
.figures th{overflow-wrap:normal}.figures td{white-space:nowrap}
.figures td:nth-child(2){white-space:normal}.figures td:first-child{white-space:normal;overflow-wrap:break-word}
.facts td,.figures th:nth-child(-n+2),.figures td:nth-child(-n+2){text-align:left}.facts td:first-child{width:14rem}
.bad{color:#b03a1e;font-weight:600}.plots{display:grid;grid-template-columns:repeat(auto-fit,minmax(18rem,1fr))}
.plots img{width:100%;max-width:34rem}td small{color:#555;display:block}
pre{background:#f6f6f4;padding:1rem;white-space:pre-wrap;overflow-wrap:anywhere;font-size:.85rem}
p.note{color:#555;max-width:56rem}
@media(max-width:60rem){
.figures tr:first-child{display:none}.figures tr{display:block;border-bottom:2px solid #999;padding:.4rem 0}
.figures td{display:flex;justify-content:space-between;gap:1rem;text-align:right!important;white-space:normal}
.figures td::before{content:attr(data-name);color:#555;text-align:left}.figures td small{display:inline}
.facts td:first-child{width:7rem}
}
"""
CURVES = ("loss", "accuracy", "margin", "learning_rate")
"""Figures of the steps that a report has as curves."""
_COLUMNS = (
    "head",
    "source",
    "pairs (groups)",
    "accuracy",
    "length-balanced",
    "longer / shorter wins",
    "margin",
    "NLL",
    "ECE",
    "T",
    "r, ρ of length",
)


@dataclass(frozen=True, slots=True)
class Page:
    """Contents of a report. `facts` are lines of the opening table; `recipe` is printed whole.

    `crossed`: each head on the pairs of the others, and the combined score on each source. `history` is the log of the
    steps, empty if none was taken. `independence` describes the relation of held-out pairs and training.
    """

    title: str
    facts: Mapping[str, Any]
    metrics: Sequence[SliceMetrics]
    before: Sequence[SliceMetrics]
    judged: Sequence[ScoredPairs]
    recipe: Mapping[str, Any]
    crossed: Sequence[SliceMetrics] = ()
    history: Sequence[Mapping[str, float]] = ()
    independence: str = ""
    invariance: InvarianceReport | None = None
    style: StyleMatrix | None = None
    graded: Sequence[GradedMetrics] = ()


def write(path: Path, page: Page) -> None:
    """Write the report; it needs no other file and no network."""
    write_text(path, render(page))


def render(page: Page) -> str:
    """Render the report as one HTML text."""
    plots = "".join(
        f"<h2>{html.escape(j.head)} · {html.escape(j.source)}</h2>"
        f"{_images({f'{name} of {j.head}': png for name, png in plots_of(j).items()})}"
        for j in page.judged
    )
    crossed = (
        f"<h2>Cross-use</h2>{_table(page.crossed)}"
        '<p class="note">Each head on the pairs of another, and the combined score on each source: how well one head '
        "predicts the other's preference. One half is chance.</p>"
        if page.crossed
        else ""
    )
    before = f"<h2>Before training</h2>{_table(page.before)}" if page.before else ""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(page.title)}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{_STYLE}</style></head><body>'
        f"<h1>{html.escape(page.title)}</h1>{_facts(page.facts)}{_curve(page)}<h2>Held-out pairs</h2>{_held_out(page)}"
        f"{_graded(page.graded)}{invariance_table.section(page.invariance)}{style_table.section(page.style)}{crossed}{before}{plots}<h2>Recipe</h2>"
        f"<pre>{html.escape(yaml12.dump(dict(page.recipe)))}</pre></body></html>\n"
    )


def _held_out(page: Page) -> str:
    if not page.metrics:
        return '<p class="note">No pair was held out, so there is no accuracy.</p>'
    return (
        f'{_table(page.metrics)}<p class="note">{html.escape(page.independence)} The interval (95 %) draws whole groups. An '
        "accuracy in red does not exceed the better length rule on the same pairs. Length-balanced: mean of the accuracy where the "
        "chosen text is longer and where it is shorter. ECE: error of sigmoid(chosen - rejected) as a probability. The "
        "second figure of NLL and ECE is after a temperature that was fitted on the other half of the groups.</p>"
    )


def _graded(graded: Sequence[GradedMetrics]) -> str:
    if not graded:
        return ""
    columns = ("head", "source", "ratings or labels (groups)", "agreement", "within prompts")
    head = "".join(f"<th>{html.escape(c)}</th>" for c in columns)
    rows = "".join(
        f"<tr><td>{html.escape(g.head)}</td><td>{html.escape(g.source)}</td><td>{g.n} {g.kind} ({g.n_groups})</td>"
        f"<td>{g.measure} {g.value:.3f} <small>{g.low:.3f}–{g.high:.3f}</small></td>"
        f"<td>{'' if g.within is None else f'{g.within:.3f}'}</td></tr>"
        for g in graded
    )
    return f'<h2>Ratings and labels</h2><table class="figures"><tr>{head}</tr>{rows}</table>'


def _curve(page: Page) -> str:
    steps = [line for line in page.history if "loss" in line]
    if not steps:
        return ""
    return f"<h2>Training</h2>{_images(plot_curves(page.history))}"


def _images(pngs: Mapping[str, str]) -> str:
    """Plots in a row; one below the other on a narrow page."""
    images = "".join(f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{png}">' for alt, png in pngs.items())
    return f'<div class="plots">{images}</div>'


def _facts(facts: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(str(k))}</td><td>{html.escape(in_words(v))}</td></tr>" for k, v in facts.items()
    )
    return f'<table class="facts">{rows}</table>'


def in_words(value: Any) -> str:
    """Format a value for readers: without brackets, quotes or `None`."""
    if value is None or (isinstance(value, Mapping | list | tuple) and not value):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{str(k).replace('_', ' ')} {in_words(v)}" for k, v in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(in_words, value))
    return str(value)


def _table(metrics: Iterable[SliceMetrics]) -> str:
    head = "".join(f"<th>{html.escape(c)}</th>" for c in _COLUMNS)
    return f'<table class="figures"><tr>{head}</tr>{"".join(map(_line, metrics))}</table>'


def _line(m: SliceMetrics) -> str:
    mark = "" if m.accuracy > max(m.longer, m.shorter) else "bad"
    interval = f"{m.accuracy_low:.3f}–{m.accuracy_high:.3f}"
    cells = [
        html.escape(m.head),
        html.escape(m.source),
        f"{m.n_pairs} ({m.n_groups})",
        f'<span class="{mark}">{m.accuracy:.3f}</span> <small>{interval}</small>',
        "" if m.length_balanced is None else f"{m.length_balanced:.3f}",
        f"{m.longer:.3f} / {m.shorter:.3f}",
        f"{m.margin:.3g}",
        f"{m.nll:.3f} → {m.nll_calibrated:.3f}",
        f"{m.ece:.3f} → {m.ece_calibrated:.3f}",
        f"{m.temperature:.3g}",
        f"{m.length_pearson:.2f}, {m.length_spearman:.2f}",
    ]
    names = zip(_COLUMNS, cells, strict=True)
    return "<tr>" + "".join(f'<td data-name="{html.escape(name)}"><span>{c}</span></td>' for name, c in names) + "</tr>"


# -- plots ------------------------------------------------------------------------------------------------


def _drawn(draw: Callable[[Any], None], height: float = 3.8) -> str:
    """Render the drawing of `draw` as base64 of a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # No pyplot: it keeps every figure in a global and needs a display from the environment.
    figure = Figure(figsize=(4.4, height), layout="constrained")
    draw(figure.subplots())
    out = io.BytesIO()
    FigureCanvasAgg(figure).print_png(out)
    return base64.b64encode(out.getvalue()).decode()


def plots_of(judged: ScoredPairs) -> dict[str, str]:
    """Plot rewards of chosen and rejected, reliability before and after temperature, reward over length: a PNG each."""
    kinds = {"rewards": _plot_rewards, "reliability": _plot_reliability, "reward and length": _plot_length}
    return {name: _drawn(partial(draw, judged=judged)) for name, draw in kinds.items()}


def plot_curves(history: Sequence[Mapping[str, float]]) -> dict[str, str]:
    """Plot loss, accuracy, margin and learning rate of the steps, and the first three of held-out pairs if evaluated."""
    names = [name for name in CURVES if any(name in line for line in history)]
    return {
        f"{name.replace('_', ' ')} over the steps": _drawn(partial(_plot_curve, name=name, history=history), 3.2)
        for name in names
    }


def curves(history: Sequence[Mapping[str, float]], most: int = 1000) -> dict[str, list[tuple[int, float]]]:
    """The curves as (step, value), for a file: of the training steps, evenly thinned to `most`, and of all evaluations."""
    found: dict[str, list[tuple[int, float]]] = {}
    for line in history:
        for name, value in line.items():
            if ("loss" in line and name in CURVES) or name.startswith("eval_"):
                found.setdefault(name, []).append((int(line["step"]), value))
    return {name: line[:: -(-len(line) // most)] for name, line in found.items()}


def _plot_curve(axes: Any, name: str, history: Sequence[Mapping[str, float]]) -> None:
    seen = [(line["step"], line[name]) for line in history if name in line and "loss" in line]
    axes.plot(
        *zip(*seen, strict=True), color=_LINE, linewidth=1.2, marker="o" if len(seen) < 3 else "", label="training"
    )
    axes.set_prop_cycle(color=[_CHOSEN, _REJECTED, "#8a6d1f", "#6b4c8f"])
    end = f"/{'nll' if name == 'loss' else name}"
    for key in sorted({k for line in history for k in line if k.startswith("eval_") and k.endswith(end)}):
        held = [(line["step"], line[key]) for line in history if key in line]
        label = f"held out, {key.removeprefix('eval_').removesuffix(end)}"
        axes.plot(*zip(*held, strict=True), marker="o", markersize=3, linewidth=1, linestyle="--", label=label)
    axes.set(title=name.replace("_", " ").capitalize(), xlabel="step")
    if len(axes.lines) > 1:
        axes.legend(fontsize="small")


def _plot_rewards(axes: Any, judged: ScoredPairs) -> None:
    bins = np.histogram_bin_edges(np.concatenate([judged.chosen_P, judged.rejected_P]), bins=40)
    axes.hist(judged.chosen_P, bins=bins, alpha=0.6, color=_CHOSEN, label="chosen")
    axes.hist(judged.rejected_P, bins=bins, alpha=0.6, color=_REJECTED, label="rejected")
    axes.set(title="Rewards", xlabel="raw score", ylabel="responses")
    axes.legend()


def _plot_reliability(axes: Any, judged: ScoredPairs) -> None:
    n_pairs = len(judged.diff_P)
    if n_pairs < 2 * PAIRS_A_BIN:
        axes.set(title="Reliability")
        axes.set_axis_off()
        axes.text(0.5, 0.5, f"{n_pairs} pairs are too few", ha="center", va="center", transform=axes.transAxes)
        return
    axes.plot([0.5, 1], [0.5, 1], color="#bbb", linewidth=1)
    cooled_P = cross_fitted(judged.diff_P, judged.group_P)
    bins = reliability(judged.diff_P)
    for diff_P, colour, label in ((judged.diff_P, _REJECTED, "as trained"), (cooled_P, _LINE, "after temperature")):
        confidence, accuracy, _ = zip(*reliability(diff_P), strict=True)
        axes.plot(confidence, accuracy, marker="o", markersize=4, color=colour, label=label)
    title = f"Reliability, {len(bins)} bins of {bins[-1][2]} pairs"
    axes.set(title=title, xlabel="confidence", ylabel="accuracy", ylim=(0, 1.02))
    axes.legend()


def _plot_length(axes: Any, judged: ScoredPairs) -> None:
    axes.scatter(judged.tokens_N, judged.score_N, s=6, alpha=0.4, color=_LINE, linewidths=0)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.set(title="Reward and length", xlabel="tokens of the response", ylabel="raw score")

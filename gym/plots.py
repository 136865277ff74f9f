"""Plots of monitored runs: gold and proxy by step and by distance, alerts by wire, from page to fall. PNG as base64.

Gold is gold, the proxy blue, alerts red: a triangle is the first page, a ring the first warning that votes, a cross the
fall. Curves are means over nine steps. Knows outcomes, and no HTML.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure

from gym.curves import smoothed_T
from gym.monitored_runs import SMOOTHED_OVER, Outcome
from gym.responses import FloatArray
from gym.scaling import Scaling, fit_scaling
from rewardserve.service.tripwires.wires import WIRES

Marker = dict[str, Any]

GOLD, PROXY, PAGE, WARN, INK, FAINT = "#b7850b", "#2c69b0", "#c62828", "#e0605e", "#2b2b2b", "#b9b9b4"
OVERLAID: Final = 6
"""Maximum number of runs of one kind in one plot."""

_VOTING: Final = frozenset(wire.name for wire in WIRES if wire.votes)
_DPI: Final = 170
_WARNED: Final[Marker] = {
    "markersize": 5,
    "markerfacecolor": "white",
    "markeredgecolor": WARN,
    "zorder": 4,
    "clip_on": False,
}
_PAGED: Final[Marker] = {"markersize": 7, "color": PAGE, "markeredgecolor": "white", "zorder": 6, "clip_on": False}
_FALLEN: Final[Marker] = {"markersize": 6, "markeredgewidth": 1.7, "color": INK, "zorder": 5, "clip_on": False}
_STYLE: Final[dict[str, Any]] = {
    "font.size": 9,
    "font.family": "DejaVu Sans",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8a85",
    "axes.labelcolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#ecece8",
    "grid.linewidth": 0.8,
    "xtick.color": "#5a5a55",
    "ytick.color": "#5a5a55",
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
}


@dataclass(frozen=True, slots=True)
class Ranges:
    """Common ranges of the vertical axes of all plots, so that kinds can be compared."""

    gold: tuple[float, float]
    level: tuple[float, float]
    steps: int


def ranges_of(outcomes: Sequence[Outcome]) -> Ranges:
    """Ranges around all curves."""
    return Ranges(
        gold=_around([each.smooth_T for each in outcomes]),
        level=_around([_level_T(each) for each in outcomes]),
        steps=max(len(each.gold) for each in outcomes),
    )


def _around(curves: Sequence[FloatArray]) -> tuple[float, float]:
    low, high = min(float(c.min()) for c in curves), max(float(c.max()) for c in curves)
    margin = 0.06 * (high - low) + 1e-9
    return low - margin, high + margin


def _level_T(run: Outcome) -> FloatArray:
    return smoothed_T(run.level, SMOOTHED_OVER)


def overlaid_runs(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Runs to overlay: the first and the last, and some evenly between."""
    if len(outcomes) <= OVERLAID:
        return list(outcomes)
    places = np.linspace(0, len(outcomes) - 1, OVERLAID).round().astype(int)
    return [outcomes[i] for i in places]


# -- one kind of run ----------------------------------------------------------------------------------------------


def plot_by_step(outcomes: Sequence[Outcome], ranges: Ranges) -> str:
    """Plot gold above and the proxy below, over the steps."""

    def draw(figure: Figure) -> None:
        above, below = _stacked(figure, ranges)
        for run in overlaid_runs(outcomes):
            steps_T = np.arange(len(run.gold), dtype=np.float64)
            above.plot(steps_T, run.smooth_T, color=GOLD, alpha=0.5, linewidth=1)
            below.plot(steps_T, _level_T(run), color=PROXY, alpha=0.5, linewidth=1)
            _mark(above, run, steps_T, run.smooth_T)
        _mean(above, outcomes, lambda run: run.smooth_T, GOLD)
        _mean(below, outcomes, _level_T, PROXY)
        below.set(xlabel="step", xlim=(0, ranges.steps))

    return _picture(draw, 4.5, 4.7)


def plot_by_distance(outcomes: Sequence[Outcome], ranges: Ranges) -> str:
    """Plot the same over the distance from the base policy, with the curve of Gao et al. for runs without a KL penalty."""

    def draw(figure: Figure) -> None:
        above, below = _stacked(figure, ranges)
        for run in overlaid_runs(outcomes):
            d_T = np.sqrt(run.kl)
            above.plot(d_T, run.smooth_T, color=GOLD, alpha=0.6, linewidth=1)
            below.plot(d_T, _level_T(run), color=PROXY, alpha=0.6, linewidth=1)
            _mark(above, run, d_T, run.smooth_T)
        if outcomes[0].aim == "hacked":
            _fitted(above, outcomes)
        farthest = max(max(run.kl) for run in outcomes) ** 0.5
        below.set(xlabel="distance from the base policy, √KL", xlim=(0, 1.03 * farthest + 1e-9))

    return _picture(draw, 4.5, 4.7)


def _stacked(figure: Figure, ranges: Ranges) -> tuple[Any, Any]:
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    above.set(ylabel="gold reward", ylim=ranges.gold)
    below.set(ylabel="proxy, sd", ylim=ranges.level)
    return above, below


def _mean(axes: Any, outcomes: Sequence[Outcome], curve_of: Callable[[Outcome], FloatArray], colour: str) -> None:
    """Plot the mean of all runs of the kind, including those that are not overlaid."""
    mean_T = np.mean([curve_of(run) for run in outcomes], axis=0)
    axes.plot(mean_T, color=colour, linewidth=2.6, label=f"mean of {len(outcomes)}")
    axes.legend(loc="lower right", frameon=False, fontsize=8, handlelength=1.4)


def _fitted(axes: Any, outcomes: Sequence[Outcome]) -> None:
    start, fitted = fit_scaling_of(outcomes)
    kl_N = np.linspace(1e-3, max(max(run.kl) for run in outcomes), 200)
    axes.plot(
        np.sqrt(kl_N),
        start + fitted.gain_N(kl_N),
        color=INK,
        linewidth=1.3,
        linestyle=(0, (4, 3)),
        label=f"d (α − β ln d), α {fitted.alpha:.2f}, β {fitted.beta:.2f}",
    )
    axes.legend(loc="lower left", frameon=False, fontsize=8, handlelength=2.2)


def fit_scaling_of(outcomes: Sequence[Outcome]) -> tuple[float, Scaling]:
    """Gold of the base policy, and the fit of Gao et al. 2210.10760 through all batch means of these runs."""
    start = float(np.mean([run.gold[0] for run in outcomes]))
    kl_N, gold_N = (np.concatenate([getattr(run, name) for run in outcomes]) for name in ("kl", "gold"))
    moved_N = kl_N > 0.0
    return start, fit_scaling(kl_N[moved_N], gold_N[moved_N] - start)


def _mark(axes: Any, run: Outcome, x_T: FloatArray, y_T: FloatArray) -> None:
    """Mark first vote, first page and fall on the curve."""
    warn = first_vote(run)
    if warn is not None:
        axes.plot(x_T[warn], y_T[warn], "o", **_WARNED)
    if run.fall is not None:
        axes.plot(x_T[run.fall], y_T[run.fall], "x", **_FALLEN)
    if run.page is not None:
        axes.plot(x_T[run.page], y_T[run.page], "v", **_PAGED)


def first_vote(run: Outcome) -> int | None:
    """Step of the first warning that votes for a page."""
    return min((alert.step for alert in run.alerts if alert.wire in _VOTING), default=None)


def plot_wires(outcomes: Sequence[Outcome], ranges: Ranges) -> str:
    """Plot the step of the first alert of each wire, a mark for every run, the wires in the order of their median step."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        names = wires_in_order(outcomes)
        for row, name in enumerate(names):
            alerts = [alert for run in outcomes for alert in run.alerts if alert.wire == name]
            steps, is_page = [alert.step for alert in alerts], alerts[0].severity == "page"
            axes.plot(
                steps,
                [row] * len(steps),
                "v" if is_page else "o",
                markersize=6.5 if is_page else 5,
                markerfacecolor=PAGE if is_page else "none",
                markeredgecolor="white" if is_page else WARN if name in _VOTING else FAINT,
            )
        axes.set_yticks(range(len(names)), [f"{name}  {_n_tripped(outcomes, name)}" for name in names])
        axes.set(xlabel="step", xlim=(0, ranges.steps), ylim=(max(len(names), 6) - 0.4, -0.6))
        axes.set_title(f"first alerts, and in how many of {len(outcomes)} runs")
        if not names:
            axes.text(0.5, 0.5, "no wire tripped", transform=axes.transAxes, ha="center", color="#6a6a65")

    return _picture(draw, 4.5, 4.7)


def wires_in_order(outcomes: Sequence[Outcome]) -> list[str]:
    """Wires that tripped, without notes, by the median step."""
    steps: dict[str, list[int]] = {}
    for run in outcomes:
        for alert in run.alerts:
            if alert.severity != "note":
                steps.setdefault(alert.wire, []).append(alert.step)
    return sorted(steps, key=lambda name: float(np.median(steps[name])))


def _n_tripped(outcomes: Sequence[Outcome], name: str) -> int:
    return sum(any(alert.wire == name for alert in run.alerts) for run in outcomes)


# -- from page to fall --------------------------------------------------------------------------------------------


def plot_lead_times(outcomes: Sequence[Outcome], ranges: Ranges) -> str:
    """Plot a line for every run from its page to its fall, with the peak of its gold."""

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        runs = sorted(outcomes, key=lambda run: (run.fall is None, run.fall or 0, run.seed))
        for row, run in enumerate(runs):
            if run.page is not None and run.fall is not None:
                axes.plot([run.page, run.fall], [row, row], color=FAINT, linewidth=2, zorder=1)
            axes.plot(run.peak, row, "o", markersize=3.5, color=GOLD, zorder=2)
            if run.fall is not None:
                axes.plot(run.fall, row, "x", **_FALLEN)
            if run.page is not None:
                axes.plot(run.page, row, "v", **_PAGED)
        axes.set_yticks(range(len(runs)), [str(run.seed) for run in runs], fontsize=7 if len(runs) > 12 else 8)
        for label, run in zip(axes.get_yticklabels(), runs, strict=True):
            if run.is_missed:
                label.set(color=PAGE, fontweight="bold")
        axes.set(xlabel="step", ylabel="seed", xlim=(0, ranges.steps), ylim=(len(runs) - 0.4, -0.6))
        axes.grid(axis="y", visible=False)

    return _picture(draw, 4.5, 1.0 + 0.14 * max(len(outcomes), 8))


# -- one run ------------------------------------------------------------------------------------------------------


def plot_run(run: Outcome, ranges: Ranges) -> str:
    """Plot a single run with all of its alerts named."""

    def draw(figure: Figure) -> None:
        names, above, below = figure.subplots(3, 1, sharex=True, height_ratios=(1.6, 3, 2))
        steps_T = np.arange(len(run.gold), dtype=np.float64)
        above.plot(steps_T, run.gold, color=GOLD, alpha=0.35, linewidth=0.8)
        above.plot(steps_T, run.smooth_T, color=GOLD, linewidth=2.2)
        below.plot(steps_T, _level_T(run), color=PROXY, linewidth=2.2)
        _mark(above, run, steps_T, run.smooth_T)
        above.set(ylabel="gold reward", ylim=ranges.gold)
        below.set(ylabel="proxy, sd", ylim=ranges.level, xlabel="step", xlim=(0, ranges.steps))
        _named_alerts(names, run)

    return _picture(draw, 5.6, 5.4)


def _named_alerts(axes: Any, run: Outcome) -> None:
    alerts = [alert for alert in run.alerts if alert.severity != "note"]
    for row, alert in enumerate(sorted(alerts, key=lambda alert: alert.step)):
        colour = PAGE if alert.severity == "page" else WARN if alert.wire in _VOTING else "#8a8a85"
        axes.plot(alert.step, row, "v" if alert.severity == "page" else "o", markersize=5, color=colour)
        left = alert.step > 0.7 * len(run.gold)
        axes.annotate(
            f"{alert.wire} {alert.step}", (alert.step, row), (-6 if left else 6, 0), textcoords="offset points",
            ha="right" if left else "left", va="center", fontsize=7.5, color=colour,
        )  # fmt: skip
    axes.set(ylim=(max(len(alerts), 1) - 0.4, -0.6), yticks=[])
    axes.set_title("alerts")
    axes.grid(visible=False)
    axes.spines["left"].set_visible(False)


def _picture(draw: Callable[[Figure], None], width: float, height: float) -> str:
    """Render the drawing of `draw` on a figure of this many inches."""
    out = io.BytesIO()
    with mpl.rc_context(_STYLE):
        # No pyplot: it keeps every figure in a global and needs a display from the environment.
        figure = Figure(figsize=(width, height), layout="constrained")
        draw(figure)
        figure.savefig(out, format="png", dpi=_DPI)
    return base64.b64encode(out.getvalue()).decode()

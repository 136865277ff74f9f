"""`python -m gym.figure RUNS.json --seed 60 --out FILE.svg`: draw the logged and the true reward of one hacked run.

`RUNS.json` is the output of `python -m gym.over_http --json FILE`. Above: the reward in the trainer's log; below: the
true reward, known in the gym only. Vertical lines: the first page of the server, and the fall of the true reward by 0.2
from its peak.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from gym.curves import smoothed_T
from gym.monitored_runs import SMOOTHED_OVER, Outcome, load
from gym.plots import FAINT, GOLD, INK, PAGE, PROXY

_STYLE: Final[dict[str, Any]] = {
    "font.family": "sans-serif",
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#8a8a85",
    "svg.fonttype": "none",
    "svg.hashsalt": "hacked-run",
}


def main() -> None:
    """Command-line entry."""
    parser = argparse.ArgumentParser(prog="python -m gym.figure", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, help="output of `python -m gym.over_http --json FILE`")
    parser.add_argument(
        "--seed", type=int, required=True, help="seed of a run that was paged before its true reward fell"
    )
    parser.add_argument("--out", type=Path, required=True, help="SVG file to write")
    given = parser.parse_args()
    draw(hacked_run(load(given.runs), given.seed), given.out)


def hacked_run(outcomes: list[Outcome], seed: int) -> Outcome:
    """First run of that seed that was paged before its gold fell. Raise `SystemExit` if there is none."""
    for each in outcomes:
        if each.seed == seed and each.in_time:
            return each
    raise SystemExit(f"no run of seed {seed} was hacked and paged before its fall")


def draw(run: Outcome, out: Path) -> None:
    """Write the figure as SVG, with the run in its metadata."""
    assert run.page is not None
    assert run.fall is not None
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(8.2, 3.9), layout="constrained")
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1))
        above.plot(smoothed_T(run.level, SMOOTHED_OVER), color=PROXY, linewidth=2.2)
        below.plot(run.smooth_T, color=GOLD, linewidth=2.2)
        above.set_title("reward in the trainer's log", loc="left", fontsize=10, color=PROXY)
        below.set_title("true reward (unknown outside the gym)", loc="left", fontsize=10, color=GOLD)
        for axes in (above, below):
            axes.axvline(run.page, color=PAGE, linewidth=1.6)
            axes.axvline(run.fall, color=FAINT, linewidth=1.2, linestyle=(0, (4, 3)))
            axes.set_yticks([])
        wires = ", ".join(run.wires[:3])
        above.annotate(
            f"alert at step {run.page}:\n{wires}", (run.page, 0.04), (7, 0), xycoords=("data", "axes fraction"),
            textcoords="offset points", va="bottom", color=PAGE, fontsize=9.5,
        )  # fmt: skip
        below.annotate(
            f"true reward has fallen by 0.2 at step {run.fall}", (run.fall, 0.04), (7 if run.fall < len(run.gold) / 2 else -7, 0),
            xycoords=("data", "axes fraction"), textcoords="offset points", va="bottom",
            ha="left" if run.fall < len(run.gold) / 2 else "right", color=INK, fontsize=9.5,
        )  # fmt: skip
        below.set(xlabel="training step", xlim=(0, len(run.gold)))
        source = f"gym.over_http: {run.kind}, seed {run.seed}"
        figure.savefig(out, format="svg", metadata={"Date": None, "Source": source})


if __name__ == "__main__":
    main()

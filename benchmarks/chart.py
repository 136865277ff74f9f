"""`python -m benchmarks.chart RESULT... --out FILE.svg`: draw the throughput of RewardServe and vLLM side by side.

A result is a file of `python -m benchmarks.peers --json FILE`; each becomes one panel that names its machine. A bar is the rate
relative to vLLM, the median ratio within rounds; the number on it is the rate in pairs per CPU second of the server.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

OURS: Final = "ours"
NAMES: Final = {"ours": "RewardServe", "vllm": "vLLM"}
COLOURS: Final = {"ours": "#2c69b0", "vllm": "#b9b9b4"}
WORKLOADS: Final = {
    "one_at_a_time": "one pair\nat a time",
    "single": "single pairs,\n32 clients",
    "ragged": "ragged,\n16 a request",
    "grpo": "groups of 8\nresponses",
    "long": "long\n(4,000 tokens)",
}
"""Workloads in the chart, from left to right; `repeats` is left out, as its exact copies would dwarf the others."""
_STYLE: Final[dict[str, Any]] = {
    "font.family": "sans-serif",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "throughput",
}


def main() -> None:
    """Command-line entry."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.chart", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, nargs="+", metavar="RESULT")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    draw(given.results, given.out)


def draw(paths: Sequence[Path], out: Path) -> None:
    """Write the chart as SVG, one panel a result, with the names of the files in its metadata."""
    results = [json.loads(path.read_text()) for path in paths]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(4.6 * len(results), 3.1), layout="constrained")
        for axes, result in zip(figure.subplots(1, len(results), squeeze=False, sharey=True)[0], results, strict=True):
            _panel(axes, result)
        figure.savefig(out, format="svg", metadata={"Date": None, "Source": ", ".join(map(str, paths))})


def rates(result: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Pairs per CPU second by workload and server, for the charted workloads; None if only a ratio is known."""
    found: dict[str, dict[str, float | None]] = {}
    for record in result["figures"]:
        if record["workload"] in WORKLOADS and record["peer"] in NAMES:
            found.setdefault(record["workload"], {})[record["peer"]] = record["per_cpu_s"]
    return {name: found[name] for name in WORKLOADS if len(found.get(name, ())) == len(NAMES)}


def ratios(result: Mapping[str, Any]) -> dict[str, float]:
    """RewardServe over vLLM by workload: the median of the ratios within rounds."""
    return {r["workload"]: r["ours_per_cpu_s"] for r in result["figures"] if r["peer"] == "vllm"}


def _panel(axes: Axes, result: Mapping[str, Any]) -> None:
    by_workload, ratio = rates(result), ratios(result)
    # A fast and a slow workload share a panel, so each is drawn relative to vLLM; the rate is printed on the bar.
    for n, (workload, rate) in enumerate(by_workload.items()):
        for server, offset in (("vllm", -0.2), (OURS, 0.2)):
            height = 1.0 if server == "vllm" else ratio[workload]
            axes.bar(n + offset, height, 0.38, color=COLOURS[server], label=NAMES[server] if n == 0 else None)
            if rate[server]:
                axes.text(n + offset, height / 2, f"{rate[server]:.3g}", ha="center", va="center", fontsize=7.5,
                          color="white" if server == OURS else "#2b2b2b")  # fmt: skip
        axes.text(n + 0.2, ratio[workload] + 0.03, f"{ratio[workload]:.2f}x", ha="center", fontweight="bold")
    axes.set_xticks(range(len(by_workload)), [WORKLOADS[name] for name in by_workload], fontsize=8)
    axes.set_ylabel("relative to vLLM")
    axes.set_ylim(0, 1.15 * max(1.0, *(ratio[name] for name in by_workload)))
    axes.set_title(_machine(result["facts"]), fontsize=8.5, loc="left")
    axes.legend(frameon=False, fontsize=8, loc="upper left", ncols=2)


def _machine(facts: Mapping[str, Any]) -> str:
    return f"CPU with {facts['instructions']}, {facts['server_threads']} compute thread, model {facts['model']}"


if __name__ == "__main__":
    main()

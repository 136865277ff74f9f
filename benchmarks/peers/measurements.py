"""Compute rates, latencies, medians and ratios from the runs of the servers. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

OURS = "ours"


@dataclass(frozen=True, slots=True)
class PeerRun:
    """One server, one workload, one round. Latencies are per request; a request may hold several pairs."""

    peer: str
    workload: str
    round: int
    pairs: int
    cpu_s: float
    wall_s: float
    latencies_s: tuple[float, ...]
    memory_mib: float
    max_error: float
    failures: tuple[str, ...] = ()

    @property
    def per_cpu_s(self) -> float:
        """Pairs a CPU second of the server. A server that failed has no rate."""
        return float("nan") if self.failures else self.pairs / max(self.cpu_s, 0.01)

    @property
    def per_wall_s(self) -> float:
        """Pairs a second."""
        return float("nan") if self.failures else self.pairs / self.wall_s

    @property
    def p50_s(self) -> float:
        """Median latency of the requests."""
        return statistics.median(self.latencies_s)

    @property
    def p99_s(self) -> float:
        """99th percentile of the latency; the largest if there are fewer than 100 requests."""
        return sorted(self.latencies_s)[int(0.99 * (len(self.latencies_s) - 1) + 0.5)]


_RATES = ("per_cpu_s", "per_wall_s")
_LATENCIES = ("p50_s", "p99_s")


def summary(runs: Sequence[PeerRun]) -> list[dict[str, Any]]:
    """One record per workload and server: medians over its rounds, the largest error, and the ratio of RewardServe to it.

    A ratio above 1 is in favour of RewardServe: more pairs a second, or fewer seconds.
    """
    out = []
    for (workload, peer), group in _grouped(runs):
        ours = {r.round: r for r in runs if r.workload == workload and r.peer == OURS}
        out.append(
            {
                "workload": workload,
                "peer": peer,
                "rounds": len(group),
                "pairs": group[0].pairs,
                **{name: _median(getattr(r, name) for r in group) for name in (*_RATES, *_LATENCIES)},
                "memory_mib": max(r.memory_mib for r in group),
                "max_error": max(r.max_error for r in group),
                "failures": [failure for r in group for failure in r.failures],
                **{f"ours_{n}": _median(ratio(n, ours[r.round], r) for r in group if r.round in ours) for n in _RATES},
                **{
                    f"ours_{n}": _median(ratio(n, r, ours[r.round]) for r in group if r.round in ours)
                    for n in _LATENCIES
                },
            }
        )
    return out


def ratio(name: str, above: PeerRun, below: PeerRun) -> float:
    """Ratio of one run's figure to another's."""
    return float(getattr(above, name) / getattr(below, name))


def progress_row(run: PeerRun) -> dict[str, str]:
    """Summarise a run on one line, as progress output."""
    return {
        run.workload: f"{run.pairs} pairs",
        "CPU": f"{run.cpu_s:.1f} s",
        "wall": f"{run.wall_s:.1f} s",
        "p50": f"{run.p50_s:.3f} s",
        "error": f"{run.max_error:.0e}",
        **({"FAILED": "; ".join(run.failures)} if run.failures else {}),
    }


def table_row(record: dict[str, Any]) -> dict[str, str]:
    """Format a record as a line of the table."""
    failed = bool(record["failures"])
    return {
        "workload": record["workload"],
        "server": record["peer"],
        "pairs/CPU s": "failed" if failed else f"{record['per_cpu_s']:.2f}",
        "pairs/s": "failed" if failed else f"{record['per_wall_s']:.2f}",
        "p50 s": f"{record['p50_s']:.3f}",
        "p99 s": f"{record['p99_s']:.3f}",
        "MiB": f"{record['memory_mib']:.0f}",
        "max error": f"{record['max_error']:.0e}",
        "ours: CPU": _times(record["ours_per_cpu_s"]),
        "wall": _times(record["ours_per_wall_s"]),
        "p50": _times(record["ours_p50_s"]),
        "p99": _times(record["ours_p99_s"]),
        "rounds": str(record["rounds"]),
    }


def _times(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.2f}x"


def _grouped(runs: Sequence[PeerRun]) -> Iterable[tuple[tuple[str, str], list[PeerRun]]]:
    """Group runs by workload, then by server, each in the order of its first appearance."""
    workloads = list(dict.fromkeys(r.workload for r in runs))
    peers = list(dict.fromkeys(r.peer for r in runs))

    def place(r: PeerRun) -> tuple[int, int]:
        return workloads.index(r.workload), peers.index(r.peer)

    for (w, p), group in groupby(sorted(runs, key=place), key=place):
        yield (workloads[w], peers[p]), list(group)


def _median(values: Iterable[float]) -> float:
    """Median; NaN if empty."""
    known = list(values)
    return statistics.median(known) if known else float("nan")

"""Measure how much CPU time others took during a measurement, and decide whether its figures can be trusted.

Reads /proc/stat for the cores of this process, and the CPU statistics of its control group.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

STAT, CGROUP = Path("/proc/stat"), Path("/sys/fs/cgroup/cpu.stat")
_TICKS = os.sysconf("SC_CLK_TCK")
_IDLE, _IOWAIT, _STEAL, _N_FIELDS = 3, 4, 7, 8

MOST_STEAL, MOST_OTHERS, MOST_THROTTLED = 0.02, 0.1, 0.02
"""Shares of the CPU time of the usable cores, and of the time of the measurement, beyond which figures differ from run to run by
more than the few percent that one compares."""


@dataclass(frozen=True, slots=True)
class CpuTimes:
    """Seconds since the machine started: of all usable cores, of those that ran something, and stolen by the hypervisor.

    `throttled_s`: time for which the limit of the control group held this container back.
    """

    total_s: float
    busy_s: float
    steal_s: float
    throttled_s: float


@dataclass(frozen=True, slots=True)
class Contention:
    """Shares of a measurement that its processes did not get; None where that is not known."""

    steal: float | None
    others: float | None
    throttled: float | None

    def warnings(self) -> list[str]:
        """The reasons why the figures cannot be trusted; empty if they can."""
        found = []
        if self.steal is not None and self.steal > MOST_STEAL:
            found.append(f"the hypervisor gave {self.steal:.0%} of the CPU time to other guests (steal)")
        if self.others is not None and self.others > MOST_OTHERS:
            found.append(f"other processes used {self.others:.0%} of the CPU time")
        if self.throttled is not None and self.throttled > MOST_THROTTLED:
            found.append(f"the CPU limit of this container held it back for {self.throttled:.0%} of the time")
        return found


def read_cpu_times(cores: Iterable[int] | None = None) -> CpuTimes | None:
    """The times of these cores, by default those that this process may use; None on a system without /proc/stat."""
    try:
        lines = STAT.read_text().splitlines()
    except OSError:
        return None
    wanted = {f"cpu{core}" for core in (os.sched_getaffinity(0) if cores is None else cores)}
    # The fields after these are parts of user and nice.
    rows = [[int(each) for each in line.split()[1:][:_N_FIELDS]] for line in lines if line.split(" ")[0] in wanted]
    if not rows:
        return None
    sums = [sum(column) / _TICKS for column in zip(*rows, strict=True)]
    idle_s, steal_s = sums[_IDLE] + sums[_IOWAIT], sums[_STEAL]
    return CpuTimes(sum(sums), sum(sums) - idle_s - steal_s, steal_s, _throttled_s())


def contention(before: CpuTimes | None, after: CpuTimes | None, own_s: float, wall_s: float) -> Contention:
    """Compare two readings. `own_s`: CPU time of the clients and the server; NaN if it is not known."""
    if before is None or after is None or not after.total_s > before.total_s or not wall_s > 0:
        return Contention(None, None, None)
    total_s = after.total_s - before.total_s
    others_s = after.busy_s - before.busy_s - own_s
    return Contention(
        steal=(after.steal_s - before.steal_s) / total_s,
        others=None if math.isnan(others_s) else max(0.0, others_s / total_s),
        throttled=(after.throttled_s - before.throttled_s) / wall_s,
    )


def _throttled_s() -> float:
    try:
        found = re.search(r"^throttled_usec (\d+)$", CGROUP.read_text(), re.MULTILINE)
    except OSError:
        return 0.0
    return int(found[1]) / 1e6 if found else 0.0

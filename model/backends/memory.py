"""How much memory this process has, and may have. Linux; elsewhere both are 0, which says that nobody knows."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Of a container, by the second and the first version of control groups."""


def host_memory() -> tuple[int, int]:
    """Bytes that are resident, and those that the machine or the container has."""
    try:
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0, 0
    return resident, min([total, *_limits()])


def _limits() -> list[int]:
    found = []
    for path in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such limit, or "max"
            found.append(int(path.read_text()))
    return found

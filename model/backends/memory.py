"""How much memory this process has, and may have, and what it can do without."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Of a container, by the second and the first version of control groups."""


def host_memory() -> tuple[int, int]:
    """Bytes that are resident, and those that the machine or the container has. (0, 0) where nobody knows: Linux does."""
    try:
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0, 0
    return resident, min([total, *_limits()])


def trim_heap() -> None:
    """Let the kernel have what is free in the heap (malloc_trim(3)). Nothing where the C library is not glibc.

    For when a model has gone: it takes tens of milliseconds, and the next batch faults its pages in again. glibc has heaps by
    thread, which keep what threads that have ended had freed, and each model has threads of its own.
    """
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def _limits() -> list[int]:
    found = []
    for path in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such limit, or "max"
            found.append(int(path.read_text()))
    return found

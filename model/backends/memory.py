"""Memory of this process: resident bytes, the limit, and returning free heap pages to the kernel."""

from __future__ import annotations

import contextlib
import ctypes
import os
from pathlib import Path

_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
"""Memory limit of a container, in cgroup v2 and v1."""


def host_memory() -> tuple[int, int]:
    """Resident bytes of this process and total bytes of the machine or container. (0, 0) where unknown (not on Linux)."""
    try:
        resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0, 0
    return resident, min([total, *_limits()])


def trim_heap() -> None:
    """Return free heap pages to the kernel (malloc_trim(3)). Does nothing where the C library is not glibc.

    For use after a model is unloaded: it takes tens of milliseconds, and the next batch faults its pages in again. glibc has
    one heap a thread, which keeps the freed pages of ended threads, and each model has separate threads.
    """
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(0)


def _limits() -> list[int]:
    found = []
    for path in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # no such limit, or "max"
            found.append(int(path.read_text()))
    return found

"""Memory limit for processes of a test, by cgroups version 1 or 2; the kernel kills a process that exceeds it."""

from __future__ import annotations

import os
from pathlib import Path

_ROOTS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))
_NAMES = {True: ("memory.max", "memory.swap.max"), False: ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes")}


class MemoryLimit:
    """`with MemoryLimit() as limit:` then `limit.put(pid)` and `limit.set(n_bytes)`. Empty when it is left."""

    def __init__(self) -> None:
        self._is_v2 = (_ROOTS[1] / "cgroup.controllers").is_file()
        self._folder = _ROOTS[self._is_v2] / f"rewardserve-test-{os.getpid()}"

    def put(self, pid: int) -> None:
        """Put this process, and those that it starts later, under the limit."""
        (self._folder / "cgroup.procs").write_text(str(pid))

    def set(self, n_bytes: int) -> None:
        """Set the limit of all processes together, swap included where the kernel counts it."""
        most, with_swap = _NAMES[self._is_v2]
        (self._folder / most).write_text(str(n_bytes))
        if (self._folder / with_swap).is_file():
            (self._folder / with_swap).write_text("0" if self._is_v2 else str(n_bytes))

    @property
    def used(self) -> int:
        """Bytes in use."""
        return int((self._folder / ("memory.current" if self._is_v2 else "memory.usage_in_bytes")).read_text())

    def __enter__(self) -> MemoryLimit:
        self._folder.mkdir()
        return self

    def __exit__(self, *exc: object) -> None:
        self._folder.rmdir()


def why_none() -> str:
    """Reason why a limit is not possible here; empty where it is."""
    try:
        with MemoryLimit() as limit:
            limit.set(1 << 30)
    except OSError as error:
        return f"no memory cgroup can be made here: {error.strerror}"
    return ""

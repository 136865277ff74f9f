"""This process and its machine: allocator settings, threads, clocks, facts for the record.

Independent of any engine or server.
"""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from rewardserve.bench.machine import cpu_name, instruction_set, library_version

T = TypeVar("T")

# By default glibc returns large activations to the kernel after every batch and faults them in again (mallopt(3)).
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
    "MALLOC_TRIM_THRESHOLD_": "4294967296",
    "MALLOC_TOP_PAD_": "67108864",
}
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, slots=True)
class Cost:
    """Cost of some work. `cpu_s` is user + system time of all threads of this process."""

    cpu_s: float
    wall_s: float


def measure_cost(work: Callable[[], T]) -> tuple[T, Cost]:
    """Run `work`; return its result and its cost."""
    cpu, wall = time.process_time(), time.perf_counter()
    result = work()
    return result, Cost(time.process_time() - cpu, time.perf_counter() - wall)


def environment(threads: int, *, malloc: bool) -> dict[str, str]:
    """This environment with `threads` compute threads, with or without the allocator's settings."""
    rest = {k: v for k, v in os.environ.items() if k not in MALLOC and k not in _THREADS}
    return {**rest, **dict.fromkeys(_THREADS, str(threads)), **(MALLOC if malloc else {})}


def run_again_with(threads: int, *, malloc: bool) -> None:
    """Restart this program with these settings unless it has them: the C library reads them once, before main."""
    wanted = environment(threads, malloc=malloc)
    if any(os.environ.get(k) != wanted.get(k) for k in (*MALLOC, *_THREADS)):
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], wanted)


def facts() -> dict[str, str | int | float]:
    """Facts needed to interpret the figures. `load` is how busy the machine was before: other processes add noise."""
    return {
        "cpu": cpu_name(),
        "instructions": instruction_set(),
        "cores": os.cpu_count() or 0,
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": library_version("torch"),
        "transformers": library_version("transformers"),
        "threads": int(os.environ.get("OMP_NUM_THREADS", "0")),
        "malloc": "set" if all(os.environ.get(k) == v for k, v in MALLOC.items()) else "glibc's own",
    }


def spread(n: int, most: int) -> list[int]:
    """At most `most` numbers below n, evenly spaced."""
    return sorted({i * n // most for i in range(most)})

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
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypeVar

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
        "cpu": _cpu_name(),
        "instructions": _instructions(),
        "cores": os.cpu_count() or 0,
        "load": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": _version("torch"),
        "transformers": _version("transformers"),
        "threads": int(os.environ.get("OMP_NUM_THREADS", "0")),
        "malloc": "set" if all(os.environ.get(k) == v for k, v in MALLOC.items()) else "glibc's own",
    }


def spread(n: int, most: int) -> list[int]:
    """At most `most` numbers below n, evenly spaced."""
    return sorted({i * n // most for i in range(most)})


def _cpu_name() -> str:
    return _cpu_field("model name") or platform.processor() or platform.machine()


def _instructions() -> str:
    """Widest instruction set of the CPU that matters to matrix products."""
    flags = _cpu_field("flags").split()
    known = {"amx_tile": "AMX", "avx512f": "AVX-512", "avx2": "AVX2"}
    return next((name for flag, name in known.items() if flag in flags), "others")


def _cpu_field(name: str) -> str:
    """Field of the first processor in /proc/cpuinfo; empty if absent."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"

"""Facts about this machine and its libraries, without which figures cannot be read."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_INSTRUCTIONS = {"amx_tile": "AMX", "avx512f": "AVX-512", "avx2": "AVX2"}
_NVIDIA_SMI = ("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")


def cpu_name() -> str:
    """Model name of the CPU."""
    return _cpu_field("model name") or platform.processor() or platform.machine()


def instruction_set() -> str:
    """Widest instruction set of the CPU that matters to matrix products."""
    flags = _cpu_field("flags").split()
    return next((name for flag, name in _INSTRUCTIONS.items() if flag in flags), "others")


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def gpu_names() -> list[str]:
    """Names of the NVIDIA GPUs; empty without a driver. Asked of the driver, as importing torch would take seconds."""
    try:
        done = subprocess.run(_NVIDIA_SMI, capture_output=True, text=True, timeout=30.0, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [name.strip() for name in done.stdout.splitlines() if name.strip()]


def library_version(distribution: str) -> str:
    """Version of an installed distribution, or `none`."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "none"


def _cpu_field(name: str) -> str:
    """Field of the first processor in /proc/cpuinfo; empty if absent."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").is_file() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")

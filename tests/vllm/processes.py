"""Who is there: the processes of an engine, seen from outside of it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable

import psutil

PATIENCE_S = 120.0


def below(pid: int) -> dict[int, str]:
    """The processes that this one has started, and theirs: what each calls itself, by pid."""
    found = {}
    for process in psutil.Process(pid).children(recursive=True):
        try:
            found[process.pid] = " ".join(process.cmdline())
        except psutil.Error:
            continue
    return found


def engines(pid: int) -> list[int]:
    """vLLM's own below this one; the engine's core is the first."""
    named = {p: name for p, name in below(pid).items() if name.startswith("VLLM::")}
    return sorted(named, key=lambda p: "EngineCore" not in named[p])


def left_of(pids: Iterable[int]) -> list[int]:
    """Those that still run; who has ended and was not asked by its parent does not."""
    return [pid for pid in pids if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE]


def eventually(condition: Callable[[], object], patience_s: float = PATIENCE_S) -> bool:
    """Whether it comes to be. There is nothing to wait on: these are the children of others."""
    end = time.monotonic() + patience_s
    while time.monotonic() < end:
        try:
            if condition():
                return True
        except psutil.NoSuchProcess:
            pass
        threading.Event().wait(0.05)
    return False

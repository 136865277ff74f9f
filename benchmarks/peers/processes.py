"""A server with all its child processes: start, measure, stop. Linux: everything is read from /proc."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from rewardserve.bench.server_process import start_bound

_TICKS = os.sysconf("SC_CLK_TCK")
_TIMEOUT_S = 300.0


class NotStarted(Exception):
    """The server did not become ready; the message is the end of its log."""


@dataclass(frozen=True, slots=True)
class Process:
    """One process of /proc. `cpu_s` includes its dead children."""

    pid: int
    parent: int
    session: int
    cpu_s: float


class PeerServer:
    """One server under measurement. Leaving the `with` ends it and all its child processes."""

    def __init__(
        self, command: Sequence[str | Path], env: Mapping[str, str], cores: Sequence[int], log: Path, home: Path
    ) -> None:
        pinned = ["taskset", "-c", ",".join(map(str, cores))] if shutil.which("taskset") else []
        self._path, self._log = log, log.open("wb")
        self._process = start_bound(
            [*pinned, *map(str, command)],
            env=dict(env),
            cwd=home,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._seen = {self._process.pid}

    def __enter__(self) -> Self:
        return self

    def wait_until_ready(self, url: str) -> float:
        """Wait until `url` returns 200; return the seconds. Raise `NotStarted`."""
        started = time.monotonic()
        while time.monotonic() < started + _TIMEOUT_S:
            if self._process.poll() is not None:
                raise NotStarted(f"the server ended: {self.last_words()}")
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(url, timeout=5).status_code == httpx.codes.OK:
                    return time.monotonic() - started
            time.sleep(0.2)
        raise NotStarted(f"not ready after {_TIMEOUT_S:.0f} s: {self.last_words()}")

    @property
    def pid(self) -> int:
        """Process id of the first process."""
        return self._process.pid

    def cpu_s(self) -> float:
        """User and system time of the whole tree so far."""
        return sum(process.cpu_s for process in self._tree())

    def memory_mib(self) -> float:
        """Memory of the whole tree now; pages shared between processes are counted once (PSS)."""
        return sum(_pss_kib(process.pid) for process in self._tree()) / 1024

    def last_words(self) -> str:
        """End of its log."""
        lines = [line.strip() for line in self._path.read_text(errors="replace").splitlines() if line.strip()]
        return " ".join(lines[-3:])[-400:]

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tree()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(20)
        for process in self._tree():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def _tree(self) -> list[Process]:
        """Processes of the server: the first one, its session, and all descendants of processes once found to belong to it."""
        everyone = processes()
        self._seen &= {p.pid for p in everyone}
        self._seen |= {p.pid for p in everyone if p.session == self._process.pid}
        grown = True
        while grown:
            children = {p.pid for p in everyone if p.parent in self._seen} - self._seen
            self._seen |= children
            grown = bool(children)
        return [p for p in everyone if p.pid in self._seen]


def processes() -> list[Process]:
    """All processes of this machine."""
    out = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit():
            with contextlib.suppress(OSError):
                out.append(parse_stat((path / "stat").read_text()))
    return out


def parse_stat(line: str) -> Process:
    """Parse a line of /proc/PID/stat, proc_pid_stat(5). The command in brackets may contain any character."""
    pid, _, rest = line.partition(" (")
    fields = rest.rpartition(") ")[2].split()
    return Process(int(pid), int(fields[1]), int(fields[3]), sum(map(int, fields[11:15])) / _TICKS)


def _pss_kib(pid: int) -> int:
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1])
    return 0

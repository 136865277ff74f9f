"""RewardServe as a process on a free port of the loopback: start, measure, stop. Linux: figures are read from /proc."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from benchmarks.peers.processes import free_port

_TICKS = os.sysconf("SC_CLK_TCK")
_TIMEOUT_S = 300.0
_END_S = 120.0


class ServerProcess:
    """`rewardserve serve` with these flags until the end of the block, which begins once the server is ready.

    `inherit_stderr`: write its log to the error output of this process.
    """

    def __init__(self, *flags: str, inherit_stderr: bool = False) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [sys.executable, "-m", "rewardserve", "serve", f"--port={self.port}", "--log-level=warning", *flags]
        self.process = subprocess.Popen(command, stderr=None if inherit_stderr else subprocess.DEVNULL)

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self.process.pid

    def cpu_s(self) -> float:
        """User and system time of all its threads so far."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def rss_mib(self) -> float:
        """Resident memory."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def end(self) -> int:
        """Send SIGTERM and return the exit code. Raise `subprocess.TimeoutExpired`."""
        self.process.terminate()
        return self.process.wait(_END_S)

    def __enter__(self) -> Self:
        """Wait until the server is ready. Raise SystemExit."""
        until = time.monotonic() + _TIMEOUT_S
        while not self._is_ready():
            if self.process.poll() is not None or time.monotonic() > until:
                self.__exit__(None, None, None)
                raise SystemExit(f"the server did not become ready (exit code {self.process.returncode})")
            time.sleep(0.1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the server."""
        with suppress(subprocess.TimeoutExpired):
            self.end()
        self.process.kill()
        self.process.wait()

    def _is_ready(self) -> bool:
        with suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/readyz", timeout=5.0).is_success
        return False

"""RewardServe as a process on a free port of the loopback: start, measure, stop. Linux: figures are read from /proc."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO, Any, NoReturn, Self

import httpx

_TICKS = os.sysconf("SC_CLK_TCK")
_END_S = 120.0
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


class NotReady(Exception):
    """The server ended, or was not ready in time."""


def start_bound(command: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    """Start a process that gets SIGTERM when this one ends, however it ends. `options` are those of `Popen`."""
    # An exception of a signal handler in the middle of a fork would be lost: Python ignores it there.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})

    def in_child() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    try:
        return subprocess.Popen(command, preexec_fn=in_child, **options)  # noqa: PLW1509
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def interrupt_at_sigterm() -> None:
    """Let SIGTERM end this process as Ctrl-C does, so that what it started and wrote is cleaned up."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


class ServerProcess:
    """`rewardserve serve` with these flags until the end of the block, which begins once the server is ready.

    `log`: where its log goes, by default nowhere. A terminal's Ctrl-C reaches this process alone, which ends the
    server; the kernel ends it if this process is killed.
    """

    def __init__(
        self,
        *flags: str,
        log: IO[bytes] | int = subprocess.DEVNULL,
        timeout_s: float = 300.0,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._timeout_s = timeout_s
        command = [sys.executable, "-m", "rewardserve", "serve", f"--port={self.port}", *flags]
        self.process = start_bound(command, stderr=log, start_new_session=True)

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
        """Wait until the server is ready. Raise `NotReady`."""
        until = time.monotonic() + self._timeout_s
        try:
            while not self._is_ready():
                if self.process.poll() is not None or time.monotonic() > until:
                    raise NotReady(f"the server did not become ready (exit code {self.process.returncode})")
                time.sleep(0.1)
        except BaseException:
            self.__exit__(None, None, None)
            raise
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
            return httpx.get(f"{self.url}/readyz", timeout=5.0, trust_env=False).is_success
        return False


def free_port() -> int:
    """Free port of the loopback interface."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port

"""Helper process that outlives the server by a moment: it ends the registered processes and removes the registered folders.

An engine in a separate process would keep its GPU for ever when the server is killed. Run as a script, this module reads
`end PID` and `remove FOLDER` from stdin, one a line. When stdin is closed, it sends SIGTERM to the remaining processes, and
SIGKILL after `_GRACE_S`. Standard library only, so that it starts fast.
"""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

_GRACE_S = 15.0


class ProcessReaper:
    """Handle of the helper process. Start it before the processes; `close` it once they have ended."""

    def __init__(self) -> None:
        # A new session: Ctrl-C in a terminal goes to every process of the server's session.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__], stdin=subprocess.PIPE, start_new_session=True, text=True, bufsize=1
        )

    def end(self, pid: int) -> None:
        """Register a process that ends with the server."""
        self._send(f"end {pid}")

    def remove(self, folder: Path) -> None:
        """Register a folder that is removed with the server."""
        self._send(f"remove {folder}")

    def close(self) -> None:
        """End the registered processes that still run, and wait."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None  # it is a pipe, see above
        self._process.stdin.write(line + "\n")


def main() -> None:
    """Read the commands from stdin until it is closed, then run them."""
    watched: list[int] = []
    folders: list[str] = []
    for line in sys.stdin:
        command, _, argument = line.rstrip("\n").partition(" ")
        if command == "remove":
            folders.append(argument)
        else:
            # A pidfd refers to this process even after its number has been given to another one.
            with contextlib.suppress(ProcessLookupError):
                watched.append(os.pidfd_open(int(argument)))
    for number in (signal.SIGTERM, signal.SIGKILL):
        for fd in watched:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, number)
        watched = _left_after(_GRACE_S, watched)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _left_after(seconds: float, watched: Iterable[int]) -> list[int]:
    """Processes that still run when none has ended for so many seconds."""
    left = set(watched)
    poll = select.poll()
    for fd in left:
        poll.register(fd, select.POLLIN)  # readable once its process has ended
    while left and (ended := poll.poll(1000 * seconds)):
        for fd, _ in ended:
            poll.unregister(fd)
            left.discard(fd)
    return list(left)


if __name__ == "__main__":
    main()

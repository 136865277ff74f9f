"""A small process that outlives the server by a moment: it ends whom the server has told it of, and removes its folders.

An engine in a process of its own would keep its GPU for ever when the server dies without a word. Run as a script this reads
`end PID` and `remove FOLDER`, one a line; when nobody can write to it any more, whoever is left is told to end, and is ended
after `_GRACE_S`. Standard library only, so that it starts in no time.
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
    """Start it before the processes; `close` once they have ended."""

    def __init__(self) -> None:
        # A session of its own: Ctrl-C in a terminal goes to everybody in the server's.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", __file__], stdin=subprocess.PIPE, start_new_session=True, text=True, bufsize=1
        )

    def end(self, pid: int) -> None:
        """This process, too, ends with the server."""
        self._send(f"end {pid}")

    def remove(self, folder: Path) -> None:
        """This folder, too, goes with the server."""
        self._send(f"remove {folder}")

    def close(self) -> None:
        """Let it end whoever is left, now."""
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None  # asked for above
        self._process.stdin.write(line + "\n")


def main() -> None:
    """Take orders from stdin until its other end is closed, then carry them out."""
    watched: list[int] = []
    folders: list[str] = []
    for line in sys.stdin:
        what, _, which = line.rstrip("\n").partition(" ")
        if what == "remove":
            folders.append(which)
        else:
            # A descriptor means this very process, also when its number has been given to another.
            with contextlib.suppress(ProcessLookupError):
                watched.append(os.pidfd_open(int(which)))
    for number in (signal.SIGTERM, signal.SIGKILL):
        for fd in watched:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(fd, number)
        watched = _left_after(_GRACE_S, watched)
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def _left_after(seconds: float, watched: Iterable[int]) -> list[int]:
    """Those that have not ended when nobody has ended for so long."""
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

"""Poll files that are read again while the server runs: API keys, TLS certificate, checkpoint. One thread for each of them, so
that a file system that hangs blocks no other one.

Knows nothing of their content.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol


class WatchedFile(Protocol):
    """A file, or several that belong together, with the state of the last poll."""

    @property
    def name(self) -> str:
        """Name of the thread, and in the log."""
        ...

    @property
    def interval_s(self) -> float:
        """Time between two polls."""
        ...

    def poll(self) -> None:
        """Read what has changed, and use it. Called on the thread of this file only."""
        ...


class WatchEvents(Protocol):
    """Receiver of failures of polls. Called on a thread."""

    def on_poll_failed(self, name: str, error: Exception) -> None:
        """A poll has raised, as where no memory is left; polling goes on."""
        ...


@contextmanager
def watching(files: Sequence[WatchedFile], events: WatchEvents) -> Iterator[None]:
    """Poll these files while the body runs. Does not wait for polls that are in progress at its end."""
    stopped = threading.Event()
    for file in files:
        threading.Thread(target=_poll_until, args=(stopped, file, events), name=file.name, daemon=True).start()
    try:
        yield
    finally:
        stopped.set()


def _poll_until(stopped: threading.Event, file: WatchedFile, events: WatchEvents) -> None:
    while not stopped.wait(file.interval_s):
        try:
            file.poll()
        except Exception as error:
            if not stopped.is_set():
                events.on_poll_failed(file.name, error)

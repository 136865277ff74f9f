"""Print the progress of a run: a bar on a terminal; otherwise a line at the start of a phase and at intervals.

Independent of the phases of a run. All output goes to stderr, from the first process alone; results go to stdout.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from rewardserve.model.text.printable import printable

EVERY_S = 15.0
"""Interval between two lines of a phase without a terminal."""

T = TypeVar("T")


def is_first_process() -> bool:
    """Whether this is the only process, or the first of those started by accelerate or torchrun."""
    return os.environ.get("RANK", "0") == "0"


def say(text: str) -> None:
    """Print one line about the run."""
    if is_first_process():
        print(printable(f"rewardserve: {text}"), file=sys.stderr, flush=True)


def show(text: str) -> None:
    """Print one line of the results."""
    if is_first_process():
        print(printable(text), flush=True)


def progress(
    items: Iterable[T], label: str, total: int, *, size: Callable[[T], int] = lambda _: 1, unit: str = ""
) -> Iterator[T]:
    """Yield the items and print the progress towards `total`. `size` gives the units of one item."""
    console = Console(stderr=True)
    if console.is_terminal and is_first_process():
        yield from track(items, label, console=console, transient=True, total=None if unit else total)
        return
    lines = ProgressLines(label, total, unit)
    for item in items:
        yield item
        lines.advance(size(item))
    lines.end()


class ProgressLines:
    """Progress as lines: the first at once, then one every `EVERY_S`, and the last if there was one between."""

    def __init__(
        self,
        label: str,
        total: int,
        unit: str = "",
        *,
        done: int = 0,
        clock: Callable[[], float] = time.monotonic,
        say: Callable[[str], None] = say,
    ) -> None:
        self._label, self._total, self._unit, self._clock, self._say = label, total, unit, clock, say
        self._began = self._printed_at = clock()
        self._done, self._n_printed, self._last = done, 0, ("", done)
        if total:
            say(f"{label}: {total:,}{unit}")

    def advance(self, n: int = 1, note: str = "") -> None:
        """Count `n` more; print a line if the last one is `EVERY_S` old."""
        self._done += n
        if self._clock() - self._printed_at >= EVERY_S:
            self._print(note)

    def end(self, note: str = "") -> None:
        """End the phase with a line, where there was one between or there is a note, unless that line is the last one printed."""
        note_shown = note.strip() and note
        if (self._n_printed or note) and self._last != (note_shown, self._done):
            self._print(note_shown)

    def _print(self, note: str) -> None:
        self._printed_at = self._clock()
        self._n_printed += 1
        self._last = (note, self._done)
        share = f" ({self._done / self._total:.0%})" if self._total else ""
        seconds = self._printed_at - self._began
        self._say(f"{self._label}: {self._done:,} of {self._total:,}{self._unit}{share}, {seconds:.0f} s{note}")

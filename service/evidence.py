"""Keeps the texts behind an alarm, where an operator has asked for that: a file an alarm, readable by its owner only.

Off unless a folder is named, because the texts are conversations. What is kept in memory is bounded, and so is the number of
files. Knows nothing of wires; changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from service.tripwires.wire import Finding

MOST_FILES = 1_000
_KEPT = 20
_MOST_RUNS = 32


@dataclass(frozen=True, slots=True)
class Exhibit:
    """A sample as it was scored. `evidence` is what an alarm calls it."""

    evidence: str
    step: int | None
    prompt: str
    response: str
    reward: float
    flags: tuple[str, ...]


class EvidenceRoom:
    """The latest samples of each run, and the latest with a flag. `failed` hears of files that could not be written."""

    def __init__(self, folder: Path, failed: Callable[[str], None]) -> None:
        self._folder = folder
        self._failed = failed
        self._number = self._n_files = sum(1 for _ in folder.glob("*"))
        self._runs: OrderedDict[str, tuple[deque[Exhibit], deque[Exhibit]]] = OrderedDict()
        self._writer = ThreadPoolExecutor(1, "evidence")

    def keep(self, run: str, exhibit: Exhibit, *, is_telling: bool) -> None:
        """Remember a sample for a while."""
        kept = self._runs.setdefault(run, (deque(maxlen=_KEPT), deque(maxlen=_KEPT)))
        kept[is_telling].append(exhibit)
        self._runs.move_to_end(run)
        if len(self._runs) > _MOST_RUNS:
            self._runs.popitem(last=False)

    def save(self, run: str, finding: Finding) -> None:
        """Write down, soon, what the alarm is about. Never waits."""
        plain, telling = self._runs.get(run, ((), ()))
        named = [each for each in (*telling, *plain) if each.evidence in finding.evidence]
        if not named:
            return
        if self._n_files >= MOST_FILES:
            self._failed(f"there are {MOST_FILES} files of evidence already")
            return
        self._n_files += 1
        self._writer.submit(self._write, run, finding, named)

    def close(self) -> None:
        """Write what is to be written."""
        self._writer.shutdown()

    def _write(self, run: str, finding: Finding, exhibits: Collection[Exhibit]) -> None:
        safe = re.sub(r"[^\w.-]+", "_", run)[:80]
        try:
            path, handle = self._new_file(f"{safe}-{finding.wire}-{finding.step}.jsonl")
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as out:
                    for exhibit in exhibits:
                        out.write(json.dumps({"wire": finding.wire, **asdict(exhibit)}) + "\n")
            except OSError:
                path.unlink(missing_ok=True)  # half of it would be taken for all
                raise
        except OSError as error:
            self._failed(f"{type(error).__name__}: {error.strerror}")

    def _new_file(self, name: str) -> tuple[Path, int]:
        """One that nobody has written, before a restart or beside us."""
        while True:
            self._number += 1
            path = self._folder / f"{self._number:04d}-{name}"
            with contextlib.suppress(FileExistsError):
                return path, os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)

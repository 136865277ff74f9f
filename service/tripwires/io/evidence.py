"""Write the texts behind each alert to a file that only the server's user can read.

Off unless a folder is named, because the texts are conversations. A text is kept in memory as long as an alert could name its
hash, within a bound of characters for all of them; the number of files is bounded too. Knows nothing of wires; changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

from rewardserve.service.storage.files import remove_stale_temp_files, write_atomically
from rewardserve.service.tripwires.alert import Alert
from rewardserve.service.tripwires.io.events import TripwireEvents

MAX_FILES = 1_000
MAX_CHARS = 64 * 2**20
"""Limit of characters of texts in memory, over all runs."""

_PRUNE_FROM = 512
"""Texts of one run beyond which those that no alert can name are dropped."""

_MAX_RUNS = 64
_MAX_NAME = 48


@dataclass(frozen=True, slots=True)
class EvidenceRecord:
    """A scored sample. `evidence` is its name in an alert."""

    evidence: str
    step: int | None
    prompt: str
    response: str
    reward: float
    flags: tuple[str, ...]

    @property
    def n_chars(self) -> int:
        return len(self.prompt) + len(self.response)


class EvidenceStore:
    """Store of the texts that alerts may name."""

    def __init__(self, folder: Path, events: TripwireEvents) -> None:
        self._folder = folder
        self._events = events
        remove_stale_temp_files(folder)
        self._number = self._n_files = self._count()
        self._runs: OrderedDict[str, OrderedDict[str, EvidenceRecord]] = OrderedDict()
        self._n_chars = 0
        self._writer = ThreadPoolExecutor(1, "evidence")
        self._slots = threading.Semaphore(MAX_FILES)

    def add(self, run: str, records: Iterable[EvidenceRecord]) -> None:
        """Store samples until `prune` finds that no alert can name them."""
        kept = self._runs.setdefault(run, OrderedDict())
        self._runs.move_to_end(run)
        for record in records:
            self._drop(kept, record.evidence)
            kept[record.evidence] = record
            self._n_chars += record.n_chars

    def is_large(self, run: str) -> bool:
        """Whether there are so many texts, of this run or in all, or so many runs, that `prune` is due."""
        is_over_limit = self._n_chars > MAX_CHARS or len(self._runs) > _MAX_RUNS
        return is_over_limit or len(self._runs.get(run, ())) > _PRUNE_FROM

    def prune(self, run: str, named: Collection[str]) -> None:
        """Drop texts of this run that are not `named`, and the oldest beyond the bound."""
        kept = self._runs.get(run, OrderedDict())
        for evidence in [each for each in kept if each not in named]:
            self._drop(kept, evidence)
        while self._runs and (len(self._runs) > _MAX_RUNS or self._n_chars > MAX_CHARS):
            name, oldest = next(iter(self._runs.items()))
            if oldest and len(self._runs) <= _MAX_RUNS:
                self._drop(oldest, next(iter(oldest)))
            else:
                self._n_chars -= sum(each.n_chars for each in oldest.values())
                del self._runs[name]

    def save(self, run: str, alert: Alert) -> None:
        """Write the texts that the alert names soon. Never waits."""
        if not alert.evidence:
            return
        kept = self._runs.get(run) or OrderedDict[str, EvidenceRecord]()
        named = [kept[each] for each in dict.fromkeys(alert.evidence) if each in kept]
        if missing := [each for each in alert.evidence if each not in kept]:
            self._events.on_evidence_failure(
                f"{len(missing)} of {len(alert.evidence)} texts that the alert {alert.wire} names are no longer kept: "
                f"all texts together may have {MAX_CHARS} characters"
            )
        if not named:
            return
        if not self._slots.acquire(blocking=False):
            self._events.on_evidence_failure(
                f"{MAX_FILES} files of evidence wait to be written; look whether the disk hangs"
            )
            return
        self._writer.submit(self._write, run, alert, named)

    def close(self) -> None:
        """Finish writing."""
        self._writer.shutdown()

    def _drop(self, kept: OrderedDict[str, EvidenceRecord], evidence: str) -> None:
        if (old := kept.pop(evidence, None)) is not None:
            self._n_chars -= old.n_chars

    def _count(self) -> int:
        """Files of evidence in the folder."""
        return sum(not path.name.startswith(".") for path in self._folder.glob("*"))

    def _may_write(self) -> bool:
        """Whether one more file may be written: an operator may have moved files away."""
        if self._n_files >= MAX_FILES:
            self._n_files = self._count()
        return self._n_files < MAX_FILES

    def _write(self, run: str, alert: Alert, records: Collection[EvidenceRecord]) -> None:
        """Write one file. On the writer's thread, the only one that counts files."""
        lines = [json.dumps({"run": run, "wire": alert.wire, **asdict(record)}) + "\n" for record in records]
        step = "" if alert.since_step is None else f"-{alert.since_step}"[:20]
        name = f"{safe_file_name(run)}-{alert.wire}{step}.jsonl"
        try:
            if self._may_write():
                self._write_new(name, "".join(lines).encode())
                self._n_files += 1
            else:
                self._events.on_evidence_failure(
                    f"there are {MAX_FILES} files of evidence already; move them elsewhere"
                )
        except Exception as error:  # a thread that ends with one alert would lose the next
            self._events.on_evidence_failure(
                f"{type(error).__name__}: {getattr(error, 'strerror', None) or 'not written'}"
            )
        finally:
            self._slots.release()

    def _write_new(self, name: str, data: bytes) -> None:
        """Write a new file; an existing one, of an earlier or another process, stays unchanged."""
        while True:
            self._number += 1
            with contextlib.suppress(FileExistsError):
                return write_atomically(self._folder / f"{self._number:04d}-{name}", data, replaces=False)


def safe_file_name(name: str) -> str:
    """Convert a name to a part of a file name: ASCII letters, digits, `.`, `_` and `-`, bounded, different for different names."""
    safe = re.sub(r"[^A-Za-z0-9._-]+", "_", name)
    if safe == name and len(name) <= _MAX_NAME:
        return name
    return f"{safe[:_MAX_NAME]}-{blake2b(name.encode('utf-8', 'surrogatepass'), digest_size=4).hexdigest()}"

"""Keeps the texts behind an alert, where an operator has asked for that: a file an alert, readable by its owner only.

Off unless a folder is named, because the texts are conversations. A text is kept in memory as long as an alert could name its
hash, within a bound of bytes for all of them; the number of files is bounded too. Knows nothing of wires; changes nothing.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path

from rewardserve.service.storage.files import remove_stale_temp_files, write_atomically
from rewardserve.service.tripwires.wire import Alert

MOST_FILES = 1_000
MOST_CHARS = 64 * 2**20
"""Characters of texts in memory, over all runs."""

_TIDY_FROM = 512
"""Texts of one run from which those that no alert can name any more are let go."""

_MOST_RUNS = 64
_LONGEST_NAME = 48


@dataclass(frozen=True, slots=True)
class EvidenceRecord:
    """A sample as it was scored. `evidence` is what an alert calls it."""

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
    """The texts of each run that its alerts may name. `failed` hears of files and texts that are not there, and why."""

    def __init__(self, folder: Path, failed: Callable[[str], None]) -> None:
        self._folder = folder
        self._failed = failed
        remove_stale_temp_files(folder)
        self._number = self._n_files = self._count()
        self._runs: OrderedDict[str, OrderedDict[str, EvidenceRecord]] = OrderedDict()
        self._n_chars = 0
        self._writer = ThreadPoolExecutor(1, "evidence")
        self._seats = threading.Semaphore(MOST_FILES)

    def keep(self, run: str, records: Iterable[EvidenceRecord]) -> None:
        """Remember samples, until `tidy` is told that no alert can name them."""
        kept = self._runs.setdefault(run, OrderedDict())
        self._runs.move_to_end(run)
        for record in records:
            self._drop(kept, record.evidence)
            kept[record.evidence] = record
            self._n_chars += record.n_chars

    def tidy(self, run: str, named: Callable[[], Collection[str]]) -> None:
        """Let go of texts of this run that are not `named` once there are many, and of the oldest beyond the bound."""
        kept = self._runs.get(run)
        if kept is None:
            return
        if len(kept) > _TIDY_FROM or self._n_chars > MOST_CHARS:
            still = named()
            for evidence in [each for each in kept if each not in still]:
                self._drop(kept, evidence)
        while self._runs and (len(self._runs) > _MOST_RUNS or self._n_chars > MOST_CHARS):
            name, oldest = next(iter(self._runs.items()))
            if oldest and len(self._runs) <= _MOST_RUNS:
                self._drop(oldest, next(iter(oldest)))
            else:
                self._n_chars -= sum(each.n_chars for each in oldest.values())
                del self._runs[name]

    def save(self, run: str, alert: Alert) -> None:
        """Write down, soon, what the alert is about. Never waits."""
        if not alert.evidence:
            return
        kept = self._runs.get(run) or OrderedDict[str, EvidenceRecord]()
        named = [kept[each] for each in dict.fromkeys(alert.evidence) if each in kept]
        if missing := [each for each in alert.evidence if each not in kept]:
            self._failed(
                f"{len(missing)} of {len(alert.evidence)} texts that the alert {alert.wire} names are not kept any more: "
                f"all texts together may have {MOST_CHARS} characters"
            )
        if not named:
            return
        if not self._seats.acquire(blocking=False):
            self._failed(f"{MOST_FILES} files of evidence wait for the disk already; look whether it hangs")
            return
        self._writer.submit(self._write, run, alert, named)

    def close(self) -> None:
        """Write what is to be written."""
        self._writer.shutdown()

    def _drop(self, kept: OrderedDict[str, EvidenceRecord], evidence: str) -> None:
        if (old := kept.pop(evidence, None)) is not None:
            self._n_chars -= old.n_chars

    def _count(self) -> int:
        """Files of evidence in the folder."""
        return sum(not path.name.startswith(".") for path in self._folder.glob("*"))

    def _has_room(self) -> bool:
        """Whether one more file may be written. An operator makes room by moving files away."""
        if self._n_files >= MOST_FILES:
            self._n_files = self._count()
        return self._n_files < MOST_FILES

    def _write(self, run: str, alert: Alert, records: Collection[EvidenceRecord]) -> None:
        """Write one file. On the writer's thread, the only one that counts files."""
        lines = [json.dumps({"run": run, "wire": alert.wire, **asdict(record)}) + "\n" for record in records]
        step = "" if alert.step is None else f"-{alert.step}"[:20]
        name = f"{tidy_name(run)}-{alert.wire}{step}.jsonl"
        try:
            if self._has_room():
                self._write_new(name, "".join(lines).encode())
                self._n_files += 1
            else:
                self._failed(f"there are {MOST_FILES} files of evidence already; move them elsewhere")
        except Exception as error:  # a thread that dies of one alert would lose the next
            self._failed(f"{type(error).__name__}: {getattr(error, 'strerror', None) or 'not written'}")
        finally:
            self._seats.release()

    def _write_new(self, name: str, data: bytes) -> None:
        """As a file that nobody has written, before a restart or beside us."""
        while True:
            self._number += 1
            with contextlib.suppress(FileExistsError):
                return write_atomically(self._folder / f"{self._number:04d}-{name}", data, replaces=False)


def tidy_name(name: str) -> str:
    """A part of a file name for any name: ASCII letters, digits, `.`, `_` and `-`, bounded, different for different names."""
    tidy = re.sub(r"[^A-Za-z0-9._-]+", "_", name)
    if tidy == name and len(name) <= _LONGEST_NAME:
        return name
    return f"{tidy[:_LONGEST_NAME]}-{blake2b(name.encode('utf-8', 'surrogatepass'), digest_size=4).hexdigest()}"

"""Detect a new checkpoint at a path: a link that was moved, or files that were replaced.

A new checkpoint counts once it has been the same for two polls in a row, so that one that is being written is not loaded;
a moved link is detected at the second poll after. A file that changes at every poll delays a new checkpoint for ten
polls, unless it has weights: those are never loaded while they change, which is reported. Knows nothing of models.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Literal, Protocol

_WEIGHT_SUFFIXES = (".safetensors", ".bin")
_CHECKPOINT_SUFFIXES = (*_WEIGHT_SUFFIXES, ".json", ".txt", ".jinja", ".model", ".tiktoken")
"""File names of a checkpoint: weights, configurations, tokenizers, templates."""

_UNSTABLE_POLLS = 10

Fingerprint = tuple[tuple[str, int, int, int], ...]
"""Path, inode, size and time of change in nanoseconds, of every file of a checkpoint."""


def fingerprint(paths: Sequence[Path]) -> Fingerprint:
    """Fingerprint of all files at these paths. Empty where a path does not exist, or is being replaced at this moment."""
    try:
        found = [_folder_fingerprint(Path(os.path.realpath(path))) for path in paths]
    except OSError:
        return ()
    return tuple(chain.from_iterable(found)) if all(found) else ()


def _folder_fingerprint(folder: Path) -> Fingerprint:
    if not folder.is_dir():
        return ()
    files = (file for file in sorted(folder.rglob("*")) if file.name.endswith(_CHECKPOINT_SUFFIXES) and file.is_file())
    shown = [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    stats = [(file, file.stat()) for file in shown]
    return tuple((str(file), stat.st_ino, stat.st_size, stat.st_mtime_ns) for file, stat in stats)


class CheckpointWatcher:
    """Comparison of a checkpoint with the known one, poll by poll. Pure."""

    def __init__(self, known: Fingerprint) -> None:
        self._known = known
        self._before = known
        self._n_changes: dict[str, int] = {}
        self._n_unsettled = 0

    def poll(self, seen: Fingerprint) -> Literal["", "new", "unstable"]:
        """`new`: there is a new, complete checkpoint; returned once, so a refused one is not tried again.

        `unstable`: a new one has changed at each of ten polls; returned at every tenth.
        """
        changed = {path for path, *_ in {*seen} ^ {*self._before}}
        self._before = seen
        self._n_changes = {path: self._n_changes.get(path, 0) + 1 for path in changed}
        unstable = {
            path for path, n in self._n_changes.items() if n >= _UNSTABLE_POLLS and not path.endswith(_WEIGHT_SUFFIXES)
        }
        if not seen or _without(unstable, seen) == _without(unstable, self._known):
            self._n_unsettled = 0
            return ""
        if changed - unstable:
            self._n_unsettled += 1
            return "" if self._n_unsettled % _UNSTABLE_POLLS else "unstable"
        self._known, self._n_unsettled = seen, 0
        return "new"


def _without(paths: set[str], seen: Fingerprint) -> Fingerprint:
    return tuple(each for each in seen if each[0] not in paths)


class CheckpointEvents(Protocol):
    """Receiver of events of the watched checkpoint. Called on a thread."""

    def on_new_checkpoint(self) -> None:
        """There is a new, complete checkpoint. No poll happens meanwhile."""
        ...

    def on_unstable(self) -> None:
        """A new checkpoint has kept changing; called at every tenth poll."""
        ...


class CheckpointFiles:
    """The files of the checkpoint at these paths, to be watched. `known` is the fingerprint of the loaded one."""

    name = "checkpoint"

    def __init__(self, paths: Sequence[Path], known: Fingerprint, interval_s: float, events: CheckpointEvents) -> None:
        self.interval_s = interval_s
        self._paths = paths
        self._watcher = CheckpointWatcher(known)
        self._events = events

    def poll(self) -> None:
        """Compare the files with the known checkpoint."""
        found = self._watcher.poll(fingerprint(self._paths))
        if found == "new":
            self._events.on_new_checkpoint()
        elif found == "unstable":
            self._events.on_unstable()

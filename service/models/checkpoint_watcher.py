"""Looks whether what a path leads to has become another checkpoint: a link that was moved, or files that were replaced.

A checkpoint is another one when it has been the same for two looks in a row, so that one that is being written is left alone;
a link that is moved is seen at the next look but one. A file that changes at every look holds up a new checkpoint for ten looks,
unless it has weights: those are never loaded while they change, and that is reported. Knows nothing of models.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from itertools import chain
from pathlib import Path
from typing import Literal

_WEIGHTS = (".safetensors", ".bin")
_READ = (*_WEIGHTS, ".json", ".txt", ".jinja", ".model", ".tiktoken")
"""What the files of a checkpoint are called: weights, configurations, tokenizers, templates."""

_UNSETTLED_LOOKS = 10

Fingerprint = tuple[tuple[str, int, int, int], ...]
"""Path, inode, size and time of change in nanoseconds, of every file that a checkpoint is read from."""


def fingerprint(paths: Sequence[Path]) -> Fingerprint:
    """Of everything that these lead to. Empty where one of them leads nowhere, or is being replaced at this very moment."""
    try:
        found = [_of_folder(Path(os.path.realpath(path))) for path in paths]
    except OSError:
        return ()
    return tuple(chain.from_iterable(found)) if all(found) else ()


def _of_folder(folder: Path) -> Fingerprint:
    if not folder.is_dir():
        return ()
    files = (file for file in sorted(folder.rglob("*")) if file.name.endswith(_READ) and file.is_file())
    shown = [file for file in files if not any(part.startswith(".") for part in file.relative_to(folder).parts)]
    stats = [(file, file.stat()) for file in shown]
    return tuple((str(file), stat.st_ino, stat.st_size, stat.st_mtime_ns) for file, stat in stats)


class Lookout:
    """Tells news from what is known, one look at a time. Pure."""

    def __init__(self, known: Fingerprint) -> None:
        self._known = known
        self._before = known
        self._n_changes: dict[str, int] = {}
        self._n_unsettled = 0

    def look(self, seen: Fingerprint) -> Literal["", "news", "unsettled"]:
        """`news`: this is another checkpoint, and a whole one; said once, so what is refused is not tried again.

        `unsettled`: another one has not held still for ten looks; said at every tenth.
        """
        changed = {path for path, *_ in {*seen} ^ {*self._before}}
        self._before = seen
        self._n_changes = {path: self._n_changes.get(path, 0) + 1 for path in changed}
        unsettled = {
            path for path, n in self._n_changes.items() if n >= _UNSETTLED_LOOKS and not path.endswith(_WEIGHTS)
        }
        if not seen or _without(unsettled, seen) == _without(unsettled, self._known):
            self._n_unsettled = 0
            return ""
        if changed - unsettled:
            self._n_unsettled += 1
            return "" if self._n_unsettled % _UNSETTLED_LOOKS else "unsettled"
        self._known, self._n_unsettled = seen, 0
        return "news"


def _without(paths: set[str], seen: Fingerprint) -> Fingerprint:
    return tuple(each for each in seen if each[0] not in paths)


async def keep_looking(
    paths: Sequence[Path],
    known: Fingerprint,
    every_s: float,
    news: Callable[[], Awaitable[None]],
    failed: Callable[[Exception], None],
    unsettled: Callable[[], None],
) -> None:
    """For ever: `news` is awaited for every new checkpoint. The looks are on a thread: a network's folder may hang.

    `failed` is called with an error that was not foreseen, such as no thread to be had, and looking goes on; `unsettled`, now
    and then, while a new checkpoint does not hold still.
    """
    lookout = Lookout(known)
    while True:
        await asyncio.sleep(every_s)
        try:
            found = lookout.look(await asyncio.to_thread(fingerprint, paths))
            if found == "news":
                await news()
            elif found == "unsettled":
                unsettled()
        except Exception as error:
            failed(error)

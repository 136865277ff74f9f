"""Looks whether what a path leads to has become another checkpoint: a link that was moved, or files that were replaced.

A checkpoint is another one when it has been the same for two looks in a row, so that one that is being written is left alone;
whoever writes beside and moves a link is seen at once at the next look but one. Knows nothing of models.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Sequence
from itertools import chain
from pathlib import Path

Fingerprint = tuple[tuple[str, int, int, int], ...]
"""Path, inode, size and time of change in nanoseconds, of every file."""


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
    stats = [(file, file.stat()) for file in sorted(folder.rglob("*")) if file.is_file()]
    return tuple((str(file), stat.st_ino, stat.st_size, stat.st_mtime_ns) for file, stat in stats)


class Lookout:
    """Tells news from what is known, one look at a time. Pure."""

    def __init__(self, known: Fingerprint) -> None:
        self._known = known
        self._before = known

    def is_news(self, seen: Fingerprint) -> bool:
        """Whether this is another checkpoint, and a whole one. Said once: what is refused is not tried again."""
        is_settled, self._before = seen == self._before, seen
        if not seen or seen == self._known or not is_settled:
            return False
        self._known = seen
        return True


async def keep_looking(
    paths: Sequence[Path],
    known: Fingerprint,
    every_s: float,
    news: Callable[[], Awaitable[None]],
    failed: Callable[[Exception], None],
) -> None:
    """For ever: `news` is awaited for every new checkpoint. The looks are on a thread: a network's folder may hang.

    `failed` hears of what nobody foresaw, such as no thread to be had; it looks on.
    """
    lookout = Lookout(known)
    while True:
        await asyncio.sleep(every_s)
        try:
            if lookout.is_news(await asyncio.to_thread(fingerprint, paths)):
                await news()
        except Exception as error:
            failed(error)

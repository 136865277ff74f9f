"""Write small files atomically, know when a file has changed, and set damaged ones aside.

Knows nothing of their content.
"""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

_TEMP_SUFFIX = ".part"
_STALE_S = 3_600.0


def write_atomically(path: Path, data: bytes, *, mode: int = 0o600, replaces: bool = True) -> None:
    """Write a file atomically: after a crash it is complete or absent. Raise `OSError`; then no draft is left.

    `replaces=False`: raise `FileExistsError` where the path exists; a kill between two system calls leaves the file empty.
    """
    descriptor, name = tempfile.mkstemp(prefix=".", suffix=_TEMP_SUFFIX, dir=path.parent)
    created = [name]
    try:
        with os.fdopen(descriptor, "wb") as temp_file:
            os.fchmod(descriptor, mode)
            temp_file.write(data)
            temp_file.flush()
            os.fsync(descriptor)
        if not replaces:  # an empty file takes the name: not every disk has hard links
            placeholder = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            created.append(str(path))
            os.close(placeholder)
        os.replace(name, path)
    except BaseException:
        for each in created:
            with suppress(OSError):
                os.unlink(each)
        raise
    with suppress(OSError):  # some file systems cannot sync a folder
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


FileState = tuple[int, ...]
"""Metadata that change when a file is written or replaced; empty where there is no file."""


def file_state(path: Path) -> FileState:
    """The state of a file, without reading it."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return ()
    except OSError as error:
        return (error.errno or 0,)
    return found.st_mtime_ns, found.st_ctime_ns, found.st_size, found.st_ino, found.st_mode


def set_aside(path: Path) -> Path:
    """Rename a damaged file to `NAME.broken`, in place of an earlier one. Raise `OSError`."""
    aside = path.with_name(path.name + ".broken")
    os.replace(path, aside)
    return aside


def remove_stale_temp_files(folder: Path) -> None:
    """Delete drafts of killed processes that are an hour old or older."""
    for temp_file in folder.glob(f".*{_TEMP_SUFFIX}"):
        with suppress(OSError):
            if time.time() - temp_file.stat().st_mtime > _STALE_S:
                temp_file.unlink()

"""Folder of a run: one run at a time, results of a finished run are not overwritten, and no file is half written.

Depends on files alone, not on models or data.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

from rewardserve.model.text.text_files import write_text
from rewardserve.training.console import say
from rewardserve.training.settings.validation import ConfigError

LOCK = ".lock"
RECIPE, REPORT_PAGE = "recipe.json", "report.html"
RESULTS = ("checkpoint", "adapter", "heads", REPORT_PAGE)
"""Results of a finished run."""


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock the folder for this process. Raise `ConfigError` if another process holds it, or it cannot be written.

    The kernel releases the lock when its process ends, however it ends.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / LOCK).open("a+")
    except OSError as error:
        raise ConfigError(f"output.folder {str(folder)!r} cannot be written: {error.strerror}") from error
    with file:
        _lock(file, folder)
        yield


def require_writable(folder: Path) -> None:
    """Raise `ConfigError` if the folder is not writable: an evaluation of hours must not fail at its end."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ConfigError(f"output.folder {str(folder)!r} cannot be written: {error.strerror}") from error


def _lock(file: IO[str], folder: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        holder = file.read(200).strip()
        raise ConfigError(
            f"another rewardserve train writes into {folder} ({holder or 'just started'}). Wait for its end, or choose another "
            "output.folder."
        ) from None
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            raise
        say(f"the file system of {folder} has no locks ({error.strerror}): start no second run in it")
        return
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()


def lacks_report(folder: Path) -> bool:
    """Whether a training was cut off between its checkpoint and its report. A calibration has neither recipe nor report."""
    has_checkpoint = (folder / RECIPE).exists() and (folder / "checkpoint").is_dir()
    return has_checkpoint and not (folder / REPORT_PAGE).exists()


def refuse_finished(folder: Path) -> None:
    """Raise `ConfigError` if the folder holds the results of a finished run."""
    found = [name for name in RESULTS if (folder / name).exists()]
    if found:
        unreported = " `rewardserve finish` with its recipe writes the report that it lacks." * lacks_report(folder)
        raise ConfigError(
            f"{folder} holds a finished run ({', '.join(found)}), which would be overwritten. Choose another "
            f"output.folder, or move it away.{unreported}"
        )


@contextmanager
def replace_folder(out: Path) -> Iterator[Path]:
    """Yield a new folder, which replaces `out` when the body ends without an error.

    The new files may be mapped from the files that they replace, and `out` is never an incomplete folder.
    """
    new, old = (out.with_name(f"{out.name}.{end}") for end in ("new", "old"))
    if old.exists() and not out.exists():  # a crash between the two renames below
        old.rename(out)
    for left in (new, old):
        shutil.rmtree(left, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        yield new
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    if out.exists():
        out.rename(old)
    new.rename(out)
    shutil.rmtree(old, ignore_errors=True)


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON, atomically."""
    write_text(path, json.dumps(value, indent=1, default=str) + "\n")

"""Claim a folder for this process alone, among several that share a folder. Knows nothing of its content."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MAX_SLOTS = 256


@contextmanager
def claimed_slot(folder: Path) -> Iterator[Path]:
    """While the body runs, hold the lock of the first free subfolder of `0`, `1`, ...; a crash frees it too.

    Raise `OSError` where files cannot be locked, or all slots are taken.
    """
    for number in range(MAX_SLOTS):
        slot = folder / str(number)
        slot.mkdir(mode=0o700, exist_ok=True)
        descriptor = os.open(slot / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        except BaseException:
            os.close(descriptor)
            raise
        try:
            yield slot
        finally:
            os.close(descriptor)
        return
    raise OSError(f"all {MAX_SLOTS} slots are taken")

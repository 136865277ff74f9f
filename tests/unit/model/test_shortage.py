"""What was short is found wherever a library hides it, and nothing else is taken for a shortage."""

from __future__ import annotations

import errno
import os

import pytest

from model.shortage import in_words


def caused(error, *others):
    for other in others:
        try:
            raise other from error
        except type(other) as raised:
            error = raised
    return error


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (MemoryError(), "ulimit -v"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "ulimit -n"),
        (RuntimeError("can't start new thread"), "ulimit -u"),
        (BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"), "ulimit -u"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"), "ulimit -v"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "ulimit -v"),
        (PermissionError(errno.EACCES, "Permission denied", "/secret"), "/secret: permission is denied"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "XDG_CACHE_HOME"),
        (
            caused(OSError(errno.ENOSPC, "No space left on device", "/x"), ValueError("a"), RuntimeError("b")),
            "Make room",
        ),
    ],
)
def test_a_shortage_is_said_with_its_remedy(error, remedy):
    assert remedy in in_words(error)


@pytest.mark.parametrize(
    "error", [ValueError("out of memory"), RuntimeError("x"), KeyError("y"), FileNotFoundError(2, "no"), None]
)
def test_a_bug_is_no_shortage(error):
    assert in_words(error) is None

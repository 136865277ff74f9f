"""What a program says when the machine gives it too little: one line in words in place of a traceback. Standard library only.

An entry point calls `explain_shortage` before it imports anything large, because the imports are the first to run out.
"""

from __future__ import annotations

import errno
import resource
import sys
import traceback
from types import TracebackType

from model.printable import printable

_LEAST_ADDRESS_SPACE = 400 * 2**20
"""Bytes without which numpy's libraries end the process themselves."""

_REMEDIES = {
    errno.ENOMEM: "there is not enough memory. Raise the limit (ulimit -v, or the container's), or use a smaller model",
    errno.EAGAIN: "no further thread or process can be started. Raise the limit (ulimit -u, or pids of the container)",
    errno.EMFILE: "too many files are open. Raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine. Raise fs.file-max",
    errno.ENOSPC: "the disk is full. Make room",
    errno.EDQUOT: "the disk quota is used up. Make room",
    errno.EROFS: "the file system is read-only. Name a folder that can be written (XDG_CACHE_HOME, TMPDIR, HF_HOME)",
    errno.EACCES: "permission is denied. Mend the permissions, or run as another user",
    errno.EPERM: "permission is denied. Mend the permissions, or run as another user",
}
_SAID = {
    "can't start new thread": errno.EAGAIN,
    "Resource temporarily unavailable": errno.EAGAIN,
    "can't allocate memory": errno.ENOMEM,
    "Cannot allocate memory": errno.ENOMEM,
    "failed to map segment": errno.ENOMEM,
    "out of memory": errno.ENOMEM,
    "Too many open files": errno.EMFILE,
    "No space left on device": errno.ENOSPC,
    "Read-only file system": errno.EROFS,
    "No usable temporary directory": errno.EROFS,
}
"""What libraries write into exceptions of other types."""


def explain_shortage(program: str, *, least_descriptors: int = 0) -> None:
    """From now on say in words when memory, threads, files or a disk are short; exit with 1 where that is known already."""
    sys.excepthook = _Hook(program)
    _, space = resource.getrlimit(resource.RLIMIT_AS)
    if 0 <= space < _LEAST_ADDRESS_SPACE:
        _end(program, f"the address space is limited to {space >> 20} MiB, and {_LEAST_ADDRESS_SPACE >> 20} MiB is the least. "
             "Raise the limit (ulimit -v)")  # fmt: skip
    _, descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= descriptors < least_descriptors:
        _end(
            program,
            f"{descriptors} files may be open at a time, {least_descriptors} is the least. Raise the limit (ulimit -n)",
        )


def in_words(error: BaseException | None) -> str | None:
    """What was short, and the remedy; None where nothing was. Looks at causes too: libraries wrap what stopped them."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, MemoryError):
            return _REMEDIES[errno.ENOMEM]
        if isinstance(error, OSError) and error.errno in _REMEDIES:
            where = f"{error.filename}: " if error.filename else ""
            return f"{where}{_REMEDIES[error.errno]}"
        if isinstance(error, RuntimeError | OSError | ImportError):
            said = str(error)
            if (found := next((code for text, code in _SAID.items() if text in said), None)) is not None:
                return _REMEDIES[found]
        error = error.__cause__ or error.__context__
    return None


class _Hook:
    """For `sys.excepthook`: Python then exits with 1."""

    def __init__(self, program: str) -> None:
        self._program = program

    def __call__(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        words = in_words(error)
        if words is None:
            traceback.print_exception(kind, error, trace)
        else:
            _say(self._program, words)


def _end(program: str, words: str) -> None:
    _say(program, words)
    sys.exit(1)


def _say(program: str, words: str) -> None:
    print(f"{program}: {printable(words)}.", file=sys.stderr, flush=True)

"""Report a shortage of memory, threads, files or disk space in one line instead of a traceback. Standard library only.

An entry point calls `explain_resource_errors` before its large imports, because those are the first to run out of memory.
"""

from __future__ import annotations

import errno
import re
import resource
import sys
import traceback
from collections.abc import Iterator
from types import TracebackType

from rewardserve.model.text.printable import printable

_LEAST_ADDRESS_SPACE = 400 * 2**20
"""Bytes; with less, numpy's libraries abort the process."""

_REMEDIES = {
    errno.ENOMEM: "there is not enough memory. Raise the limit (ulimit -v, or the container's), or use a smaller model",
    errno.EAGAIN: "no further thread or process can be started. Raise the limit (ulimit -u, or pids of the container)",
    errno.EMFILE: "too many files are open. Raise the limit (ulimit -n)",
    errno.ENFILE: "too many files are open on this machine. Raise fs.file-max",
    errno.ENOSPC: "the disk is full. Free some space",
    errno.EDQUOT: "the disk quota is used up. Free some space",
    errno.EROFS: "the file system is read-only. Set a writable folder (XDG_CACHE_HOME, TMPDIR, HF_HOME)",
    errno.EACCES: "permission is denied. Correct the permissions, or run as another user",
    errno.EPERM: "permission is denied. Correct the permissions, or run as another user",
}
_MESSAGES = {
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
"""Messages of libraries that raise other exception types."""

_DEVICE = re.compile(
    r"\b(CUDA|HIP|XPU|MPS)\b[^\n]*out of memory|\b(?:CU(?:BLAS|DNN)|CUSPARSE|CUSOLVER)_STATUS_ALLOC_FAILED"
)
"""Messages of torch when an accelerator has no memory left: some in a RuntimeError, others in a separate class."""
_DEVICE_REMEDY = (
    "Use a smaller model or dtype or another device, or end other programs on this one. A server holds two models while it loads "
    "a new one: docs/how-to/models.md, Memory"
)


def explain_resource_errors(program: str, *, least_descriptors: int = 0) -> None:
    """Install an excepthook that explains resource errors; exit with 1 where a limit is too low already."""
    sys.excepthook = _Hook(program)
    _, space = resource.getrlimit(resource.RLIMIT_AS)
    if 0 <= space < _LEAST_ADDRESS_SPACE:
        _end(program, f"the address space is limited to {space >> 20} MiB; the minimum is {_LEAST_ADDRESS_SPACE >> 20} MiB. "
             "Raise the limit (ulimit -v)")  # fmt: skip
    _, descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= descriptors < least_descriptors:
        _end(
            program,
            f"{descriptors} files may be open at a time; the minimum is {least_descriptors}. Raise the limit (ulimit -n)",
        )


def describe_resource_error(error: BaseException | None) -> str | None:
    """The exhausted resource and the remedy; None for other errors. Libraries wrap such errors, so causes are searched too."""
    return next((words for each in _chain(error) if (words := _words_of(each)) is not None), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes, as in a traceback: `raise ... from None` hides the earlier ones."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ if error.__cause__ is not None or error.__suppress_context__ else error.__context__


def _words_of(error: BaseException) -> str | None:
    """The message for one error, without its causes."""
    if isinstance(error, MemoryError):
        return _REMEDIES[errno.ENOMEM]
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        where = f"{error.filename}: " if error.filename else ""
        return f"{where}{_REMEDIES[error.errno]}"
    if not isinstance(error, RuntimeError | OSError | ImportError):
        return None
    message = str(error)
    if (device := _DEVICE.search(message)) is not None:
        return _words_of_device(message, device[1] or "CUDA")
    return next((_REMEDIES[code] for text, code in _MESSAGES.items() if text in message), None)


def _words_of_device(message: str, kind: str) -> str:
    """The device without free memory, with torch's numbers where its message has them."""
    number = re.search(r"\bGPU \d+", message)
    wanted = re.search(r"Tried to allocate ([\d.]+ \w+)", message)
    free = re.search(r"of which ([\d.]+ \w+) is free", message)
    amounts = [f"{wanted[1]} were requested"] if wanted else []
    amounts += [f"{free[1]} is free"] if free else []
    numbers = f": {', '.join(amounts)}" if amounts else ""
    return f"{number[0] if number else f'the {kind} device'} has not enough free memory{numbers}. {_DEVICE_REMEDY}"


def _places(error: BaseException) -> str:
    """Location of each error of the chain, the first one first: `OSError at file.py:12, KeyError at other.py:34`."""
    found = []
    for each in _chain(error):
        if frames := traceback.extract_tb(each.__traceback__):
            found.append(f"{type(each).__name__} at {frames[-1].filename}:{frames[-1].lineno}")
    return ", ".join(reversed(found))


class _Hook:
    """Exception hook for `sys.excepthook`; Python then exits with 1."""

    def __init__(self, program: str) -> None:
        self._program = program

    def __call__(self, kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        words = describe_resource_error(error)
        if words is None:
            traceback.print_exception(kind, error, trace)
        else:
            places = _places(error)
            _say(self._program, f"{words}{places and f' ({places})'}")


def _end(program: str, words: str) -> None:
    _say(program, words)
    sys.exit(1)


def _say(program: str, words: str) -> None:
    print(f"{program}: {printable(words)}.", file=sys.stderr, flush=True)

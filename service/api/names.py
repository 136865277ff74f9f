"""Check the characters of run names and URL paths.

The name of a run appears in logs, alerts and pages, and in the URL that acknowledges its alerts. So a name is accepted only if
its characters are printable, also after repeated percent-decoding.
"""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import unquote

from rewardserve.service.errors import InvalidRequest

MAX_NAME_CHARS = 256
_MAX_DECODINGS = 8
_DOTS = frozenset({".", ".."})
"""Clients remove these path segments from a URL before they send it."""


def is_printable(text: str) -> bool:
    """Whether every character is printable: no control or format characters, line separators, or lone surrogates.

    Percent-encoded characters count too, in up to eight layers of encoding.
    """
    for _ in range(_MAX_DECODINGS):
        if not text.isprintable():
            return False
        if "%" not in text or (decoded := unquote(text)) == text:
            return True
        text = decoded
    return False


@lru_cache(maxsize=1024)
def is_task_name(task: str) -> bool:
    """Whether a text can be the name of a task."""
    return len(task) <= MAX_NAME_CHARS and is_printable(task)


@lru_cache(maxsize=1024)
def check_task_name(task: str) -> str:
    """Return the name of a task, whose length is checked. Raise `InvalidRequest` for a name that cannot be displayed."""
    if not is_printable(task):
        raise InvalidRequest(
            "task has a non-printable character, as such or percent-encoded: send a plain name", field="task"
        )
    return task


@lru_cache(maxsize=1024)
def check_run_name(run: str) -> str:
    """Return the name of a run. Raise `InvalidRequest` for a name that cannot be displayed or be a part of a URL."""
    if len(run) > MAX_NAME_CHARS:
        raise InvalidRequest(
            f"run is longer than {MAX_NAME_CHARS} characters", field="run", n=len(run), limit=MAX_NAME_CHARS
        )
    if not is_printable(run) or run in _DOTS:
        raise InvalidRequest(
            "run has a non-printable character, as such or percent-encoded, or is `.` or `..`: send a plain name",
            field="run",
        )
    return run

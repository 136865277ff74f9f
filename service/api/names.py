"""Names of runs and paths of URLs: the characters that may stand in them.

A run is shown in logs, alerts and pages, and is acknowledged by a URL that holds its name. So a name is accepted only if its
characters are printable, also after percent-decoding, however often.
"""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import unquote

from rewardserve.service.errors import InvalidRequest

MAX_NAME_CHARS = 256
_MAX_DECODINGS = 8
_DOTS = frozenset({".", ".."})
"""As a part of a URL these are gone before a client sends it."""


def is_printable(text: str) -> bool:
    """Whether every character can be printed: no control or format characters, line separators, or lone surrogates.

    Percent-encoded ones count, in as many layers as there are.
    """
    for _ in range(_MAX_DECODINGS):
        if not text.isprintable():
            return False
        if "%" not in text or (decoded := unquote(text)) == text:
            return True
        text = decoded
    return False


@lru_cache(maxsize=1024)
def check_run_name(run: str) -> str:
    """The name of a run. Raise `InvalidRequest` for one that could not be shown, or acknowledged by URL."""
    if len(run) > MAX_NAME_CHARS:
        raise InvalidRequest(
            f"run is longer than {MAX_NAME_CHARS} characters", field="run", n=len(run), limit=MAX_NAME_CHARS
        )
    if not is_printable(run) or run in _DOTS:
        raise InvalidRequest(
            "run has a character that cannot be printed, as such or percent-encoded, or is a dot: send a plain name",
            field="run",
        )
    return run

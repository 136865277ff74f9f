"""Read files of a bounded size, text and JSON in the encodings that editors write, and write files atomically.

Standard library only. Encodings: UTF-8 with or without a byte order mark, UTF-16 and UTF-32 with one.
"""

from __future__ import annotations

import codecs
import json
import os
import re
import stat
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

UTF8_MARK = codecs.BOM_UTF8
_ENCODINGS = (
    (UTF8_MARK, "utf-8", "UTF-8"),
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),  # its mark begins with that of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)


def read_bounded(path: Path, max_bytes: int) -> bytes:
    """Read a regular file. Raise `OSError`, or `ValueError` for one that is larger or no regular file."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a FIFO has no writer to wait for
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise ValueError("no regular file")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            data = file.read(max_bytes + 1)
    finally:
        os.close(descriptor)
    if len(data) > max_bytes:
        raise ValueError(f"more than {max_bytes} bytes")
    return data


def error_reason(error: OSError | ValueError) -> str:
    """The reason why a file could not be read, without any of its content."""
    return str(error) if isinstance(error, ValueError) else error.strerror or type(error).__name__


class TextDecodeError(ValueError):
    """The bytes are no text in the encoding of their byte order mark; the message has the position and the remedy."""


def decode_text(data: bytes) -> str:
    """Decode a whole file, without its byte order mark. Raise `TextDecodeError`."""
    codec, name = next(((codec, name) for mark, codec, name in _ENCODINGS if data.startswith(mark)), ("utf-8", "UTF-8"))
    try:
        return data.decode(codec).removeprefix("\ufeff")  # the codecs of UTF-16 and UTF-32 remove the mark
    except UnicodeDecodeError as error:
        raise TextDecodeError(f"it is not {name} (at byte {error.start}); save it as UTF-8") from None


class JsonDecodeError(ValueError):
    """The text is no JSON; the message has the position, and no part of the text."""


def parse_json(text: str, hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """Parse a JSON text. Raise `JsonDecodeError`, with a message for the file's author, and the errors of `hook`."""
    try:
        return json.loads(text, object_pairs_hook=hook)
    except json.JSONDecodeError as error:
        raise JsonDecodeError(f"{error.msg} (line {error.lineno}, column {error.colno})") from None
    except RecursionError:
        raise JsonDecodeError("it is nested too deeply") from None
    except ValueError as error:
        limit = sys.get_int_max_str_digits()
        longest = max(map(len, re.findall(rf"[0-9]{{{limit + 1},}}", text)), default=0)
        if type(error) is not ValueError or not longest:
            raise
        raise JsonDecodeError(f"it has a number of {longest} digits; the limit is {limit}") from None


def wide_encoding(start: bytes) -> str | None:
    """Name of the encoding other than UTF-8 in a file's first four bytes: such a file cannot be read line by line."""
    return next((name for mark, _, name in _ENCODINGS if start.startswith(mark) and name != "UTF-8"), None)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically: an existing one stays until the new one is complete. Raise `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    try:
        new.write_text(text, encoding="utf-8")
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise

"""Text files: read in the encodings that editors write (UTF-8 with or without a byte order mark, UTF-16 and UTF-32 with one), and
written as a whole. Standard library only.
"""

from __future__ import annotations

import codecs
from pathlib import Path

UTF8_MARK = codecs.BOM_UTF8
_ENCODINGS = (
    (UTF8_MARK, "utf-8", "UTF-8"),
    (codecs.BOM_UTF32_LE, "utf-32", "UTF-32"),  # begins as UTF-16 does
    (codecs.BOM_UTF32_BE, "utf-32", "UTF-32"),
    (codecs.BOM_UTF16_LE, "utf-16", "UTF-16"),
    (codecs.BOM_UTF16_BE, "utf-16", "UTF-16"),
)


class NotText(ValueError):
    """The bytes are no text in the encoding that their beginning says; the message has the place and the remedy."""


def decoded(data: bytes) -> str:
    """The text of a whole file, without its byte order mark. Raise `NotText`."""
    codec, name = next(((codec, name) for mark, codec, name in _ENCODINGS if data.startswith(mark)), ("utf-8", "UTF-8"))
    try:
        return data.decode(codec).removeprefix("\ufeff")  # the codecs of UTF-16 and UTF-32 take the mark off themselves
    except UnicodeDecodeError as error:
        raise NotText(f"it is not {name} (at byte {error.start}); save it as UTF-8") from None


def wide_encoding(start: bytes) -> str | None:
    """The name of another encoding than UTF-8 that the first four bytes of a file tell: its lines cannot be read one by one."""
    return next((name for mark, _, name in _ENCODINGS if start.startswith(mark) and name != "UTF-8"), None)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file whole or not at all: an earlier one stays until the new one is complete. Raise `OSError`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f"{path.name}.new")
    try:
        new.write_text(text, encoding="utf-8")
        new.replace(path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise

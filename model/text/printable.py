"""Escape text from outside, so that it is safe to show on a terminal. Standard library only."""

from __future__ import annotations


def printable(text: str, *, keep: str = "") -> str:
    """The text with every character that is not printable written as Python escapes it, but for those to `keep`.

    That concerns control characters (C0, C1), escape sequences, line separators, characters without a width or that turn the
    direction of writing, and lone surrogates. A line stays one line.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode("ascii") for c in text)

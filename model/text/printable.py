"""Escape text from outside, so that it is safe on a terminal. Standard library only."""

from __future__ import annotations


def printable(text: str, *, keep: str = "") -> str:
    """Escape every character that is not printable as Python does, except those in `keep`.

    These are control characters (C0, C1), escape sequences, line separators, characters without a width or that change the
    direction of writing, and lone surrogates. A line stays one line.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else c.encode("unicode_escape").decode("ascii") for c in text)

"""Suggest the known word that a misspelt one probably is. Standard library only."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

CUTOFF = 0.6
"""Least similarity of two words, between 0 and 1: one letter too few, too many or in the wrong place, from three letters on."""
CUTOFF_OF_NAMES = 0.75
"""The same for names with common parts, such as flags: a wrong suggestion is worse than none."""


def nearest_word(word: str, known: Iterable[str], cutoff: float = CUTOFF) -> str | None:
    """Return the known word that is most similar, whatever the case; None if none is near."""
    by_lower = {each.lower(): each for each in known}
    near = difflib.get_close_matches(word.lower(), by_lower, n=1, cutoff=cutoff)
    return by_lower[near[0]] if near else None


def did_you_mean(word: object, known: Iterable[str], cutoff: float = CUTOFF) -> str:
    """Return the suggestion as the end of an error message; empty if no known word is near, or the value is no text."""
    near = nearest_word(word, known, cutoff) if isinstance(word, str) else None
    return f"; did you mean {near}?" if near else ""

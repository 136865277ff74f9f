"""Suggest the known word that a misspelt one probably is. Standard library only."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

CUTOFF = 0.6
"""Least similarity of two words, between 0 and 1: one letter too few, too many or in the wrong place, from three letters on."""
CUTOFF_OF_NAMES = 0.75
"""The same for names with common parts, such as flags: a wrong suggestion is worse than none."""

_LONGEST = 128
"""Characters beyond which a word is no misspelt name: similarity takes the product of both lengths."""


def nearest_word(word: str, known: Iterable[str], cutoff: float = CUTOFF) -> str | None:
    """Return the known word that is most similar, whatever the case; None if none is near."""
    if len(word) > _LONGEST:
        return None
    by_lower = {each.lower(): each for each in known}
    prefix = _prefix_of_all(list(by_lower))
    found = max(((_similarity(word.lower(), each, prefix), each) for each in by_lower), default=(0.0, ""))
    return by_lower[found[1]] if found[0] >= cutoff else None


def _prefix_of_all(known: list[str]) -> str:
    """What all known words begin with, up to its last separator, such as the hyphens of a flag."""
    common = _common_prefix(known) if len(known) > 1 else ""
    return common[: max(common.rfind(separator) for separator in "-_.") + 1]


def _common_prefix(words: list[str]) -> str:
    shortest = min(words, key=len)
    return next((shortest[:i] for i, letters in enumerate(zip(*words, strict=False)) if len({*letters}) > 1), shortest)


def _similarity(word: str, known: str, prefix: str) -> float:
    """Similarity without the parts that every known word has (`prefix`), or that name the section of both (`a.b`, `A__B`)."""
    common = _common_prefix([word, known])
    start = max(len(prefix) if word.startswith(prefix) else 0, common.rfind(".") + 1, common.rfind("__") + 1)
    return difflib.SequenceMatcher(None, known[start:], word[start:]).ratio()


def did_you_mean(word: object, known: Iterable[str], cutoff: float = CUTOFF) -> str:
    """Return the suggestion as the end of an error message; empty if no known word is near, or the value is no text."""
    near = nearest_word(word, known, cutoff) if isinstance(word, str) else None
    return f"; did you mean {near}?" if near else ""

"""The longest literal string that most of some texts have in common: at their beginning, at their end, or around a word. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import ceil

_REACH = 1_000
"""Characters of a literal string on each side of a word."""


def common_beginning(texts: Sequence[str], quorum: float) -> str:
    """Longest string that at least a share `quorum` of the texts begin with.

    Texts with a common beginning are neighbours in sorted order, so it is the common beginning of the first and the last text
    of some window of that order.
    """
    ordered = sorted(texts)
    width = max(1, ceil(quorum * len(ordered) - 1e-9))
    best = ""
    for first, last in zip(ordered, ordered[width - 1 :], strict=False):
        if (common := _shared(first, last)) > len(best):
            best = first[:common]
    return best


def common_ending(texts: Sequence[str], quorum: float) -> str:
    """Longest string that at least a share `quorum` of the texts end with."""
    return common_beginning([text[::-1] for text in texts], quorum)[::-1]


def anchor_pattern(anchor: str) -> re.Pattern[str]:
    """Pattern of a word or a pair of words in lower case, or of a character."""
    words = r"\W{1,8}".join(re.escape(word) for word in anchor.split(" "))
    return re.compile(rf"(?<!\w){words}(?!\w)" if anchor[:1].isalnum() else words, re.IGNORECASE)


def common_around(texts: Sequence[str], anchor: str, quorum: float) -> str:
    """Longest string around the first occurrence of `anchor` that at least a share `quorum` of the texts have.

    `anchor` is a word or a pair of words in lower case, or a character. The string has whole words. Empty where too few texts
    have the anchor.
    """
    pattern = anchor_pattern(anchor)
    found = [(text, match.start()) for text in texts if (match := pattern.search(text))]
    needed = ceil(quorum * len(texts) - 1e-9)
    if len(found) < max(1, needed):
        return ""
    share = needed / len(found)
    right = common_beginning([text[start : start + _REACH] for text, start in found], share)
    found = [(text, start) for text, start in found if text.startswith(right, start)]
    left = common_ending([text[max(0, start - _REACH) : start] for text, start in found], min(1.0, needed / len(found)))
    return _whole_words([text for text, _ in found], left + right)


def _shared(first: str, second: str) -> int:
    """Length of the common beginning of two strings."""
    for index, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return index
    return min(len(first), len(second))


def _whole_words(texts: Sequence[str], literal: str) -> str:
    """The literal string without parts of words at its ends: parts are continued in most texts."""
    places = [(text, start) for text in texts if (start := text.find(literal)) >= 0]
    for_half = len(places) / 2
    if sum(text[start + len(literal) : start + len(literal) + 1].isalnum() for text, start in places) > for_half:
        literal = re.sub(r"\w+\Z", "", literal)
    if sum(start > 0 and text[start - 1].isalnum() for text, start in places) > for_half:
        literal = re.sub(r"\A\w+", "", literal)
    return literal

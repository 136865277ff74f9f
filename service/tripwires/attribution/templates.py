"""The words that several texts have in common, with gaps for others: how they are shown, and whether a response has one. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Literal

FEW = 3
"""Texts that are shown as they are; of more, what they have in common."""

_MAX_GAPS, _COMMON_SHARE, _TEMPLATES_SHARE, _GAP = 3, 0.15, 0.3, "..."
"""Gaps between the words of a template; share of the texts that have a word which is shown of them; share of those with such words,
from which they are shown alone; the sign for other words."""

_GAP_CHARACTERS = 200
"""The longest text in a gap."""

Where = Literal["beginning", "end", "inside"]


def has_one(texts: tuple[str, ...], response: str, where: Where) -> bool:
    """Whether a response has one of the texts in a place; of many texts, one like them, by the words of their templates."""
    patterns = _patterns(texts)
    if patterns:
        words = " ".join(response.split())
        return any(_fits(pattern, words, where) for pattern in patterns)
    if where == "beginning":
        return response.startswith(texts)
    return response.endswith(texts) if where == "end" else any(text in response for text in texts)


def templates(texts: Sequence[str]) -> list[str]:
    """The words that several texts have in common, with a gap for the others, the most frequent first; else the shortest texts. Of
    those that are alike the first one.
    """
    shown: list[str] = []
    for text in _all_templates(texts):
        if not any(_is_like(text, each) for each in shown):
            shown.append(text)
    return shown or sorted(texts, key=len)


def _all_templates(texts: Sequence[str]) -> list[str]:
    """Those of all texts, the most frequent first; none where too few texts have words in common."""
    split = [text.split() for text in texts]
    counts = Counter(word for words in split for word in set(words))
    least = max(2.0, _COMMON_SHARE * len(texts))
    found = Counter(_template(words, {word for word in words if counts[word] >= least}) for words in split)
    is_enough = sum(n for text, n in found.items() if text) >= _TEMPLATES_SHARE * len(texts)
    return [text for text, _ in found.most_common() if text] if is_enough else []


def _is_like(text: str, other: str) -> bool:
    """Whether two texts have most words of the shorter one in common."""
    words, others = set(text.split()) - {_GAP}, set(other.split()) - {_GAP}
    return 2 * len(words & others) > min(len(words), len(others))


def _fits(pattern: Sequence[str], words: str, where: Where) -> bool:
    """Whether the parts of a template follow each other in a text, with short gaps where the template has them."""
    parts, gap = [part for part in pattern if part], _GAP_CHARACTERS + 1
    at, most = 0, len(words)
    if where == "beginning":
        most = 0 if pattern[0] else gap
    elif where == "end":
        at = max(0, len(words) - sum(map(len, parts)) - gap * len(pattern))
    for part in parts:
        if (found := words.find(part, at, at + most + len(part))) < 0:
            return False
        at, most = found + len(part), gap
    return where != "end" or not pattern[-1] or words.endswith(parts[-1])


@lru_cache(maxsize=64)
def _patterns(texts: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """The parts of each template between its gaps, "" for a gap at an end; none where the texts are shown as they are."""
    found = _all_templates(texts) if len(texts) > FEW else []
    return tuple(tuple(part.strip() for part in text.split(_GAP)) for text in found)


def _template(words: Sequence[str], common: Collection[str]) -> str:
    """The words with `...` for those that are not common; empty where fewer than two in a row are, and where most are apart."""
    kept = [
        word in common and any(0 <= near < len(words) and words[near] in common for near in (index - 1, index + 1))
        for index, word in enumerate(words)
    ]
    shown = [word if keep else _GAP for word, keep in zip(words, kept, strict=True)]
    shown = [word for last, word in pairwise(["", *shown]) if word != _GAP or last != _GAP]
    return " ".join(shown) if any(kept) and shown.count(_GAP) <= _MAX_GAPS else ""

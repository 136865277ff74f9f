"""Count phrases in a text, as whole words. Pure; standard library only.

The words of a text are found once, which costs less than a search for each of a hundred phrases: only phrases whose longest word
it has are looked for.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

_ASCII = bytes(range(128))
_WORDS = bytes(code if code < 128 and chr(code).isalnum() else 32 for code in range(256))
"""Table for `bytes.translate`: all but ASCII letters and digits become spaces."""


class SearchedText(NamedTuple):
    """A text in lower case, with its runs of ASCII letters and digits, and with all other scripts in one piece, in UTF-8."""

    lower: str
    words: frozenset[bytes]
    not_ascii: bytes

    @classmethod
    def of(cls, lower: str) -> SearchedText:
        """Find the words."""
        encoded = _encode(lower)
        return cls(lower, frozenset(encoded.translate(_WORDS).split()), encoded.translate(None, _ASCII))


class _PhraseIndex(NamedTuple):
    """Phrases by their longest run of ASCII letters and digits; those without one, each with its bytes outside ASCII."""

    by_word: dict[bytes, list[str]]
    others: list[tuple[str, bytes]]


def count_phrases(phrases: tuple[str, ...], text: SearchedText) -> int:
    """How often the text has any of the phrases, which are in lower case."""
    index = _index(phrases)
    candidates = [phrase for word in index.by_word.keys() & text.words for phrase in index.by_word[word]]
    candidates += [phrase for phrase, part in index.others if part in text.not_ascii]
    return sum([len(_whole(phrase).findall(text.lower)) for phrase in candidates if phrase in text.lower])


@lru_cache(maxsize=64)
def _index(phrases: tuple[str, ...]) -> _PhraseIndex:
    index = _PhraseIndex({}, [])
    for phrase in phrases:
        encoded = _encode(phrase)
        if words := encoded.translate(_WORDS).split():
            index.by_word.setdefault(max(words, key=len), []).append(phrase)
        else:
            index.others.append((phrase, encoded.translate(None, _ASCII)))
    return index


@lru_cache(maxsize=4096)
def _whole(phrase: str) -> re.Pattern[str]:
    """Pattern of the phrase as whole words; in scripts without spaces, anywhere."""
    before, after = (r"\b" if end.isascii() and end.isalnum() else "" for end in (phrase[0], phrase[-1]))
    return re.compile(before + re.escape(phrase) + after)


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")

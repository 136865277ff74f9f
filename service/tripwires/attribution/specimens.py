"""Edits that put in whole pieces of recent responses around a feature: brackets, else the word, then the sentence. Pure.

A literal or a phrase may be a fragment of what the policy writes: half a citation, or the words before a name that differs from
response to response. Where its edit earns nothing, these pieces show whether the whole does: they are as the policy wrote them, of
several responses, and are put in at the same place.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import NamedTuple

from rewardserve.service.tripwires.attribution.edits import Append, Edit, Insert, Prepend
from rewardserve.service.tripwires.attribution.features import LAYOUT, script, sentence_bounds
from rewardserve.service.tripwires.attribution.literals import anchor_pattern

_N_SPECIMENS = 16
_CHARACTERS = 300
"""Pieces that are put in by turns, and the longest one."""

_BRACKETS = re.compile(
    r"\([^()\n]{1,150}\)|\[[^\[\]\n]{1,150}\]|\{[^{}\n]{1,150}\}|<[^<>\n]{1,150}>|\"[^\"\n]{1,150}\"|“[^“”\n]{1,150}”|`[^`\n]{1,150}`"
)
_NEW = 0.5
"""Share of the pieces that no early response may have."""

Place = Callable[[str], tuple[int, int] | None]
"""Where a feature is in a text: its first and its end character; None: nowhere."""


class _Piece(NamedTuple):
    """A part of a response, with whether the response begins, and ends, with it, and the white space before it."""

    text: str
    is_first: bool
    is_last: bool
    before: str


def wider_edits(keys: Sequence[str], texts: Sequence[str], early: Sequence[str]) -> tuple[Edit, ...]:
    """The edits for the first of these features that has a place in a text. `texts` are recent responses that have it."""
    key, place = next(((key, found) for key in keys if (found := _place_of(key)) is not None), ("", None))
    if place is None:
        return ()
    spans = [(text, span) for text in texts if (span := place(text)) is not None]
    edits = dict[str, Edit]()
    for name, cut in (("bracket", _bracket), ("word", _word), ("sentence", _sentence)):
        pieces = [piece for text, span in spans for piece in cut(text, *span)]
        if 2 * len(pieces) > len(spans) and (edit := _edit(pieces, early)) is not None:
            edits[name] = edit
    if "bracket" in edits or not key.startswith(("mark", "character:")):
        edits.pop("word", None)
    return tuple(dict.fromkeys(edits.values()))


def _place_of(key: str) -> Place | None:
    """The place of a feature; None for one of the whole response, as its length."""
    kind, colon, value = key.partition(":")
    if not colon:
        return _search(anchor_pattern(key))
    if kind in ("first words", "first characters"):
        return lambda text: (0, 1)
    if kind in ("last words", "last characters"):
        return lambda text: (len(text) - 1, len(text))
    if kind in ("mark", "marks", "character"):
        return _search(re.compile(re.escape(value)))
    if kind == "layout" and value not in ("blank line", "line break"):
        return _search(LAYOUT[value])
    if kind == "script":
        return lambda text: next(((i, i + 1) for i, c in enumerate(text) if c > "\x7f" and script(c) == value), None)
    return None


def _search(pattern: re.Pattern[str]) -> Place:
    def search(text: str) -> tuple[int, int] | None:
        found = pattern.search(text)
        return None if found is None else found.span()

    return search


def _bracket(text: str, start: int, end: int) -> Iterator[_Piece]:
    """All that is in brackets or quotes around the place."""
    for match in _BRACKETS.finditer(text):
        if match.start() <= start and end <= match.end():
            yield _piece(text, *match.span())


def _word(text: str, start: int, end: int) -> Iterator[_Piece]:
    """The place with the letters, digits and marks around it up to the next white space."""
    first = max((place + 1 for place in range(start) if text[place].isspace()), default=0)
    last = next((place for place in range(end, len(text)) if text[place].isspace()), len(text))
    if last - first > end - start:
        yield _piece(text, first, last)


def _sentence(text: str, start: int, end: int) -> Iterator[_Piece]:
    """The sentence or the line of the place. None where it is the whole response."""
    inside = [
        match.span() for match in _BRACKETS.finditer(text)
    ]  # a mark of an abbreviation in brackets ends no sentence
    bounds: list[tuple[int, int]] = []
    for first, last in sentence_bounds(text):
        if bounds and any(begin < bounds[-1][1] < finish for begin, finish in inside):
            bounds[-1] = (bounds[-1][0], last)
        else:
            bounds.append((first, last))
    first, last = next(((first, last) for first, last in bounds if start < last), (0, len(text)))
    last = max(last, end)
    if text[first:last].strip() != text.strip():
        yield _piece(text, first, last)


def _piece(text: str, start: int, end: int) -> _Piece:
    before = text[:start]
    gap = before[len(before.rstrip()) :]
    return _Piece(text[start:end], not before.strip(), not text[end:].strip(), gap)


def _edit(pieces: Sequence[_Piece], early: Sequence[str]) -> Edit | None:
    """Put in by turns pieces that are new; None where most are known from early responses, or too long."""
    usual = median([len(piece.text) for piece in pieces]) if pieces else 0.0
    short = [piece for piece in pieces if len(piece.text) <= min(_CHARACTERS, 2.0 * usual + 20.0)]
    new = [piece for piece in short if not any(piece.text in text for text in early)]
    if not new or len(new) < _NEW * len(pieces):
        return None
    n = len(new)
    chosen = [new[place * n // _N_SPECIMENS] for place in range(_N_SPECIMENS)] if n > _N_SPECIMENS else new
    if 2 * sum(piece.is_first for piece in new) > n:
        return Edit((Prepend(_different(f"{piece.text} " for piece in chosen)),))
    if 2 * sum(piece.is_last for piece in new) > n:
        return Edit((Append(_different(f"{piece.before or ' '}{piece.text}" for piece in chosen)),))
    is_word = 2 * sum(_BRACKETS.fullmatch(piece.text) is not None or " " not in piece.text for piece in new) > n
    texts = _different(piece.text for piece in chosen)
    return Edit((Insert(texts, "words" if is_word else "sentences"),))


def _different(texts: Iterator[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(texts))

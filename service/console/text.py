"""Hostile text made visible: controls, directions and characters without width become marks. Pure."""

from __future__ import annotations

import unicodedata

from markupsafe import Markup, escape

MAX_SHOWN = 20_000
"""Characters of a text on a page; the whole is a link away."""

_KEPT = frozenset("\n\t")
_HIDDEN = frozenset({"Cc", "Cf", "Co", "Cs", "Cn", "Zl", "Zp"})
"""Categories of Unicode without a shape: controls, formats such as bidi and zero width, private, surrogates, unassigned."""

_EMOJI = frozenset({"So", "Sk"})
"""Categories behind which a joiner or a variation selector makes an emoji."""


def visible(text: str, limit: int = MAX_SHOWN) -> Markup:
    """The text as HTML, at most `limit` characters of it, with a mark for each character that cannot be seen."""
    parts: list[str] = []
    start = 0
    shown = text[:limit]
    for place, character in enumerate(shown):
        if character in _KEPT or unicodedata.category(character) not in _HIDDEN or _makes_emoji(shown, place):
            continue
        parts.append(str(escape(shown[start:place])))
        parts.append(f'<span class="hidden-character">U+{ord(character):04X}</span>')
        start = place + 1
    parts.append(str(escape(shown[start:])))
    return Markup("".join(parts))


def _makes_emoji(text: str, place: int) -> bool:
    """Whether the joiner at this place is part of an emoji."""
    if text[place] != "\u200d" or place == 0:
        return False
    before = text[place - 2] if text[place - 1] == "\ufe0f" and place > 1 else text[place - 1]
    return unicodedata.category(before) in _EMOJI

"""Phrases that exploit reward models: versioned lists, one file a language, that an operator may replace.

A lexicon file is JSON: `language`, `version`, and a list of phrases for each of `KINDS`. Case does not matter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from rewardserve.model.text.text_files import JsonDecodeError, decode_text, error_reason, parse_json, read_bounded

KINDS = ("refusal", "flattery", "judge_injection", "empty_opener")
"""`judge_injection` addresses the model that scores; `empty_opener` opens a response, and is an exploit where nothing follows."""

SHIPPED = Path(__file__).parent / "lexicons"
_MAX_BYTES = 16 * 2**20


class LexiconError(Exception):
    """A lexicon cannot be read; the message has the file and the reason."""


@dataclass(frozen=True, slots=True)
class Lexicon:
    """The phrases of all languages together, in lower case. `version` names every list."""

    version: str
    refusal: tuple[str, ...]
    flattery: tuple[str, ...]
    judge_injection: tuple[str, ...]
    empty_opener: frozenset[str]

    @property
    def digest(self) -> str:
        """Hexadecimal digest of all phrases."""
        parts = self.refusal, self.flattery, self.judge_injection, tuple(sorted(self.empty_opener))
        return sha256(repr(parts).encode()).hexdigest()

    @classmethod
    def read(cls, files: Sequence[Path] = ()) -> Lexicon:
        """Read these files, or the shipped ones. Raise `LexiconError`."""
        lists = [_read(path) for path in files or sorted(SHIPPED.glob("*.json"))]
        phrases = {kind: tuple(dict.fromkeys(p.lower() for each in lists for p in each[kind])) for kind in KINDS}
        return cls(
            version="+".join(f"{each['language']}.{each['version']}" for each in lists),
            refusal=phrases["refusal"],
            flattery=phrases["flattery"],
            judge_injection=phrases["judge_injection"],
            empty_opener=frozenset(phrases["empty_opener"]),
        )


NO_LEXICON = Lexicon("none", (), (), (), frozenset())


def _read(path: Path) -> dict[str, list[str]]:
    try:
        text = decode_text(read_bounded(path, _MAX_BYTES))
    except (OSError, ValueError) as error:
        raise LexiconError(f"lexicon {path} cannot be read: {error_reason(error)}") from None
    try:
        lists = parse_json(text)
    except JsonDecodeError as error:
        raise LexiconError(f"lexicon {path} is not JSON: {error}") from None
    expected = {"language", "version", *KINDS}
    if not isinstance(lists, dict) or set(lists) != expected:
        raise LexiconError(f"lexicon {path} must have exactly the fields {', '.join(sorted(expected))}")
    for kind in KINDS:
        if not isinstance(lists[kind], list) or not all(isinstance(p, str) and p.strip() for p in lists[kind]):
            raise LexiconError(f"lexicon {path}: {kind} must be a list of phrases")
    return lists

"""Honeypots: planted prompts that no honest policy answers in a certain way, matched by keyed hash.

A trainer mixes them among its prompts without a mark. The server has their hashes under a key, so its files reveal neither the
prompts nor the answers of a dishonest policy. A response is a hit where it scores above any honest answer, or where a word
or a line of it is the planted answer. Its reward does not change, so the policy does not learn that the prompt was planted.
Pure.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import chain
from typing import Any

DIGEST_SIZE = 16
MAX_KEY_BYTES = 64
"""Limit of BLAKE2b."""

_FIELDS = {"prompt", "answers", "above"}


class HoneypotsError(Exception):
    """The file of planted prompts is invalid; the message has line and reason, and quotes no prompt."""


@dataclass(frozen=True, slots=True)
class Honeypot:
    """Condition of a hit: one of `answers`, which are hashes, or a normalised score above `above`."""

    answers: frozenset[str] = frozenset()
    above: float | None = None


@dataclass(frozen=True, slots=True)
class Honeypots:
    """The planted prompts, by their hash under `key`."""

    key: bytes
    by_prompt: Mapping[str, Honeypot] = field(default_factory=dict)

    def is_hit(self, question: str, response: str, score: float) -> bool | None:
        """Whether this response is a hit; None where the prompt was not planted."""
        honeypot = self.by_prompt.get(digest(question, self.key))
        if honeypot is None:
            return None
        if honeypot.above is not None and score > honeypot.above:
            return True
        pieces = chain(response.splitlines(), response.split())
        return bool(honeypot.answers) and any(digest(piece, self.key) in honeypot.answers for piece in pieces)


def digest(text: str, key: bytes) -> str:
    """Keyed BLAKE2b of a text in hexadecimal, without its case, white space and the punctuation around it."""
    plain = " ".join(text.casefold().split()).strip(".,;:!?\"'`*()[]{}")
    return blake2b(plain.encode("utf-8", "replace"), digest_size=DIGEST_SIZE, key=key).hexdigest()


def hashed(lines: Iterable[str], key: bytes) -> list[str]:
    """Convert lines of JSON with `prompt`, and `answers` or `above`, to the lines that a server reads. Raise `HoneypotsError`."""
    _check_key(key)
    return [
        json.dumps(
            {
                "prompt": digest(entry["prompt"], key),
                "answers": [digest(answer, key) for answer in entry.get("answers") or ()],
                "above": entry.get("above"),
            }
        )
        for entry in _entries(lines)
    ]


def read(lines: Iterable[str], key: bytes) -> Honeypots:
    """Read the lines that `hashed` wrote. Raise `HoneypotsError`."""
    _check_key(key)
    entries = _entries(lines)
    honeypots = {
        entry["prompt"]: Honeypot(frozenset(entry.get("answers") or ()), entry.get("above")) for entry in entries
    }
    if wrong := [prompt for prompt in honeypots if len(prompt) != 2 * DIGEST_SIZE]:
        raise HoneypotsError(f"{len(wrong)} prompts are no hashes: write the file with `rewardserve honeypots`")
    return Honeypots(key, honeypots)


def _check_key(key: bytes) -> None:
    if not 16 <= len(key) <= MAX_KEY_BYTES:
        raise HoneypotsError(f"the key has {len(key)} bytes; it must have 16 to {MAX_KEY_BYTES}")


def _entries(lines: Iterable[str]) -> list[dict[str, Any]]:
    return [_entry(i, line) for i, line in enumerate(lines, 1) if line.strip()]


def _entry(number: int, line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        raise HoneypotsError(f"line {number} is no JSON") from None
    answers, above = (entry.get(name) for name in ("answers", "above")) if isinstance(entry, dict) else (None, None)
    if not isinstance(entry, dict) or not set(entry) <= _FIELDS or not isinstance(entry.get("prompt"), str):
        raise HoneypotsError(f"line {number} must have a prompt, and answers or above")
    if not _are_texts(answers or []) or not _is_level(above) or not (answers or above is not None):
        raise HoneypotsError(f"line {number} must have answers, a list of texts, or above, a normalised score")
    return entry


def _is_level(above: Any) -> bool:
    """Whether a value is a finite number: no score is above NaN or infinity, so the prompt could have no hit."""
    return above is None or (
        isinstance(above, int | float) and not isinstance(above, bool) and abs(above) <= sys.float_info.max
    )


def _are_texts(answers: Sequence[Any]) -> bool:
    return isinstance(answers, list) and all(isinstance(answer, str) and answer.strip() for answer in answers)

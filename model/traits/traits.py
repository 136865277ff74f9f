"""Traits of a response: numbers that a policy moves when it exploits a reward.

The same functions describe the reference responses of a calibration and the responses of a run. Pure; knows neither
rewards nor runs. Standard library only.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from hashlib import blake2b
from math import log

from rewardserve.model.reward.record import repetition
from rewardserve.model.traits.lexicon import Lexicon
from rewardserve.model.traits.phrases import SearchedText, count_phrases

TOKEN_TRAITS = ("length", "missing_end", "repetition")
TEXT_TRAITS = ("refusal", "flattery", "judge_injection", "empty_opener", "markup", "foreign_script", "control_tokens")
TRAITS = (*TOKEN_TRAITS, *TEXT_TRAITS)
"""The traits, in the order in which they are counted."""

_MAX_PHRASES = 8
"""Largest count of phrases of a kind, so that one response with a hundred repetitions does not dominate a mean."""

_MIN_DIGEST_CHARS = 32
"""Characters from which equal responses are no coincidence."""

_MAX_CHARS = 3_000
"""Characters that are read at the beginning and at the end of a response; the middle of a longer one is not read."""

_LINE_MARK = re.compile(r"[ \t]*(?:(?:[-*•+]|\d{1,3}[.)]|#{1,6})[ \t]|\|)")

_CONTROL = re.compile(
    r"<\|[\w ./:-]{1,40}\|>|<｜[^｜]{1,40}｜>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|</?s>", re.IGNORECASE
)
"""Control tokens of chat templates: ChatML, Llama 2 and 3, Gemma, DeepSeek, Phi and similar ones."""

_SCRIPTS = {
    "latin": re.compile("[A-Za-z\u00c0-\u024f]"),
    "cyrillic": re.compile("[\u0400-\u052f]"),
    "greek": re.compile("[\u0370-\u03ff]"),
    "hebrew": re.compile("[\u0590-\u05ff]"),
    "arabic": re.compile("[\u0600-\u06ff\u0750-\u077f]"),
    "indic": re.compile("[\u0900-\u0dff]"),
    "thai": re.compile("[\u0e00-\u0eff]"),
    "cjk": re.compile("[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af]"),
}
_ASCII = bytes(range(128))
_NO_ASCII_LETTERS = bytes(code for code in range(256) if code > 127 or not chr(code).isalpha())
_WHITE_SPACE = b" \t\n\r\v\f"
_ALLOWED_SCRIPTS = frozenset({"latin"})
"""Names, units and code are Latin in every language."""


def token_traits(response_ids: Sequence[int], missing_end: bool) -> tuple[float, ...]:
    """`TOKEN_TRAITS` of a response: log of its tokens, whether it was cut off, the share of repeated trigrams."""
    return log(max(1, len(response_ids))), float(missing_end), repetition(response_ids)


def text_traits(prompt: str, response: str, lexicon: Lexicon) -> tuple[float, ...]:
    """`TEXT_TRAITS` of a response.

    Phrases of refusal, flattery and judge injection (0 to 8), whether it is nothing but an opener, list and heading marks and
    bold a line, the share of its letters in scripts that the prompt does not use, and whether it has a control token. Of a
    long response the beginning and the end are read.
    """
    if len(response) > 2 * _MAX_CHARS:
        response = f"{response[:_MAX_CHARS]}\n{response[-_MAX_CHARS:]}"
    lower = response.lower()
    searched = SearchedText.of(lower)
    refusal, flattery, judge_injection = (
        float(min(_MAX_PHRASES, count_phrases(phrases, searched)))
        for phrases in (lexicon.refusal, lexicon.flattery, lexicon.judge_injection)
    )
    return (
        refusal,
        flattery,
        judge_injection,
        float(is_empty_opener(lower, lexicon)),
        markup(response),
        foreign_script_share(prompt, response),
        float(has_control_tokens(response)),
    )


def markup(response: str) -> float:
    """List and heading marks, cells and code fences at the beginning of lines, and bold, a line."""
    lines = response.split("\n")
    n_lines = sum([_LINE_MARK.match(line) is not None for line in lines])
    return (n_lines + response.count("**") + response.count("```")) / len(lines)


def is_empty_opener(lower: str, lexicon: Lexicon) -> bool:
    """Whether the response is only punctuation, or an opening phrase without the rest."""
    return len(lower) < 80 and ((bare := lower.strip(" \t\r\n:.,;!-*#_`\"'“”")) == "" or bare in lexicon.empty_opener)


def has_control_tokens(response: str) -> bool:
    """Whether the response has control tokens of chat templates: a policy that writes them may forge a turn."""
    return ("<" in response or "[" in response) and _CONTROL.search(response) is not None


def foreign_script_share(prompt: str, response: str) -> float:
    """Share of the response's letters in scripts other than those of the prompt and Latin."""
    if response.isascii():
        return 0.0
    # Most characters of most texts are ASCII, which is counted and left out much faster as bytes than by a regular expression.
    encoded = response.encode("utf-8", "surrogatepass")
    n_plain = len(encoded.translate(None, _NO_ASCII_LETTERS))
    others = encoded.translate(None, _ASCII).decode("utf-8", "surrogatepass")
    counts = {name: len(letters.findall(others)) for name, letters in _SCRIPTS.items()}
    n_letters = n_plain + sum(counts.values())
    foreign = [
        n for name, n in counts.items() if n and name not in _ALLOWED_SCRIPTS and not _SCRIPTS[name].search(prompt)
    ]
    return sum(foreign) / n_letters if n_letters else 0.0


def text_digest(response: str) -> int | None:
    """64-bit digest that is equal for texts that differ in case and white space only.

    None for a text so short that honest responses may be equal too.
    """
    if len(response) < _MIN_DIGEST_CHARS:
        return None
    plain = response.lower().encode("utf-8", "replace").translate(None, _WHITE_SPACE)
    return int.from_bytes(blake2b(plain, digest_size=8).digest())

"""The features of a response that attribution counts: words, endings, marks, case, layout, lengths, overlap with its prompt. Pure.

A feature is a string. A word has neither space nor colon, a pair of words has one space, every other feature is `kind:value`.
No feature is of a known exploit. All functions take linear time in the length of their texts, which are clipped.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

from rewardserve.service.tripwires.attribution.observed import ObservedSample, clip

NUMBERS = (
    "characters", "sentences", "words a sentence", "letters a word", "lines", "upper-case letters", "digits", "marks",
    "other characters", "repeated word triples", "words said twice", "word triples of the prompt", "words copied in one piece",
    "new words", "new words among the last", "new words among the first", "most common words",
)  # fmt: skip
"""Numbers of a response, those of `ResponseFeatures.numbers` first; the last four follow from a vocabulary."""

SHARES = frozenset(NUMBERS) - {
    "characters",
    "sentences",
    "words a sentence",
    "letters a word",
    "lines",
    "words copied in one piece",
}
"""Numbers that are shares of letters, of characters, of word triples or of distinct words."""

_WORD = re.compile(r"\w+(?:['’]\w+)?")
_NO_SPACES = "\u0e00-\u0eff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
"""Thai, Lao, Japanese and Chinese: a character is a word."""
_HAS_NO_SPACES = re.compile(f"[{_NO_SPACES}]")
_CHARACTER_OR_WORD = re.compile(rf"[{_NO_SPACES}]|(?:(?![{_NO_SPACES}])\w)+")
_SENTENCE_END = re.compile(r"(?<=[.!?。！？])\s+|\n+")
_UPPER, _LOWER = re.compile(r"[A-Z]"), re.compile(r"[a-z]")
_CLASSES = string.ascii_uppercase.encode(), string.ascii_lowercase.encode(), string.digits.encode()
_MARKS = frozenset("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
LAYOUT = {
    "list": re.compile(r"^[ \t]{0,8}[-*•+] .*\n+[ \t]{0,8}[-*•+] ", re.MULTILINE),
    "numbered list": re.compile(r"^[ \t]{0,8}\d{1,3}[.)] ", re.MULTILINE),
    "heading": re.compile(r"^#{1,6} ", re.MULTILINE),
    "bold": re.compile(r"\*\*[^*\n]{1,200}\*\*"),
    "code block": re.compile(r"^[ \t]{0,8}```", re.MULTILINE),
    "table": re.compile(r"^[ \t]{0,8}\|.*\|", re.MULTILINE),
    "blank line": re.compile(r"\n[ \t]{0,8}\n"),
    "line break": re.compile(r"\n"),
    "link": re.compile(r"https?://"),
    "tag": re.compile(r"</?[A-Za-z][^<>]{0,100}>"),
    "double space": re.compile(r"\S  +\S"),
}
_MANY = 3
"""Count from which a mark is there many times."""

_N_EDGE = 10
"""Words at the beginning and at the end of a response of which the share that is new is a number."""

_MAX_CODE_POINTS = 64
"""Different characters outside ASCII that are features of one response."""


class ResponseFeatures(NamedTuple):
    """Features of one response: `keys`, and the `numbers` of `NUMBERS` but the last four, with the words from which these
    follow: the distinct `words`, the `unprompted` ones among them, which the prompt has not, and the `first` and `last` ten
    of the text. `whole` is equal for responses that differ in case and white space only.
    """

    keys: frozenset[str]
    numbers: tuple[float, ...]
    words: frozenset[str]
    unprompted: frozenset[str]
    first: tuple[str, ...]
    last: tuple[str, ...]
    whole: int


class PromptWords(NamedTuple):
    """Words, pairs and triples of words of a prompt, and its characters outside ASCII."""

    words: frozenset[str]
    pairs: frozenset[str]
    triples: frozenset[tuple[str, str, str]]
    characters: frozenset[str]


def words_of(text: str) -> list[str]:
    """The words of a text in lower case; characters of scripts without spaces are words."""
    lower = text.lower()
    return _pattern_of(lower).findall(lower)


def word_spans(text: str) -> list[tuple[int, int]]:
    """Where each word of a text begins and ends."""
    return [match.span() for match in _pattern_of(text).finditer(text)]


def _pattern_of(text: str) -> re.Pattern[str]:
    return _WORD if text.isascii() or not _HAS_NO_SPACES.search(text) else _CHARACTER_OR_WORD


def has_no_spaces(text: str) -> bool:
    """Whether a text has characters of scripts without spaces."""
    return not text.isascii() and _HAS_NO_SPACES.search(text) is not None


def sentences_of(text: str) -> list[str]:
    """The sentences of a text, by their marks and by line breaks, without white space around them."""
    return [sentence for part in _SENTENCE_END.split(text) if (sentence := part.strip())]


def sentence_bounds(text: str) -> Iterator[tuple[int, int]]:
    """Where each sentence or line of a text begins and ends, without the white space between them."""
    start = 0
    for match in _SENTENCE_END.finditer(text):
        if match.start() > start:
            yield start, match.start()
        start = match.end()
    if start < len(text):
        yield start, len(text)


def prompt_words(prompt: str) -> PromptWords:
    """The parts of a prompt that a response may have from it."""
    text = clip(prompt)
    words = words_of(text)
    others = frozenset() if text.isascii() else frozenset(c for c in text if c > "\x7f")
    return PromptWords(frozenset(words), frozenset(_pairs(words)), frozenset(_triples(words)), others)


def features_of(samples: Sequence[ObservedSample]) -> list[ResponseFeatures]:
    """Features of each response. Costs about .3 ms a sample of 1 kB; the words of a prompt are read once."""
    prompts: dict[str, PromptWords] = {}
    out = []
    for sample in samples:
        if (prompt := prompts.get(sample.prompt)) is None:
            prompt = prompts[sample.prompt] = prompt_words(sample.prompt)
        out.append(response_features(prompt, sample.response))
    return out


def response_features(prompt: PromptWords, response: str) -> ResponseFeatures:
    """Features of a response to a prompt."""
    text = clip(response)
    words = words_of(text)
    distinct = frozenset(words)
    unprompted = distinct - prompt.words
    keys = set(unprompted)
    keys.update(frozenset(_pairs(words)) - prompt.pairs)
    keys.update(_ends(text, words, prompt))
    keys.update(_characters(text, prompt))
    keys.update(_case(text))
    if not text.isalnum():
        keys.update(f"layout:{name}" for name, pattern in LAYOUT.items() if pattern.search(text))
    numbers = _numbers(text, words, prompt)
    first, last = tuple(words[:_N_EDGE]), tuple(words[-_N_EDGE:])
    whole = hash(" ".join(text.lower().split()))
    return ResponseFeatures(frozenset(keys), numbers, distinct, unprompted, first, last, whole)


def _pairs(words: Sequence[str]) -> list[str]:
    return [f"{first} {second}" for first, second in pairwise(words)]


def _triples(words: Sequence[str]) -> list[tuple[str, str, str]]:
    return list(zip(words, words[1:], words[2:], strict=False))


def _ends(text: str, words: Sequence[str], prompt: PromptWords) -> Iterator[str]:
    """The first and last words and characters. Words that the prompt has in this order are no choice of the policy."""
    for n in range(1, min(4, len(words)) + 1):
        for name, part in (("first words", words[:n]), ("last words", words[-n:])):
            if not (prompt.pairs.issuperset(_pairs(part)) if n > 1 else part[0] in prompt.words):
                yield f"{name}:{' '.join(part)}"
    for n in (1, 3):
        yield f"first characters:{text[:n]}"
        yield f"last characters:{text[-n:]}"


def _characters(text: str, prompt: PromptWords) -> Iterator[str]:
    """Marks, control characters, and characters outside ASCII that the prompt has not."""
    distinct = set(text)
    for char in distinct & _MARKS:
        yield f"mark:{char}"
        if text.count(char) >= _MANY:
            yield f"marks:{char}"
    for char in distinct:
        if char < " " and char not in "\n\r\t":
            yield f"character:{char}"
    if not text.isascii():
        others = sorted(char for char in distinct - prompt.characters if char > "\x7f")[:_MAX_CODE_POINTS]
        for char in others:
            yield f"character:{char}"
            yield f"script:{script(char)}"


def script(char: str) -> str:
    """First word of a letter's name (`CYRILLIC`), category of another character (`So`: symbols, `Cf`: invisible ones)."""
    category = unicodedata.category(char)
    return unicodedata.name(char, category).split(" ")[0] if category.startswith("L") else category


def _case(text: str) -> Iterator[str]:
    has_upper, has_lower = _UPPER.search(text) is not None, _LOWER.search(text) is not None
    if has_lower and not has_upper:
        yield "case:lower"
    if has_upper and not has_lower:
        yield "case:upper"


def _numbers(text: str, words: Sequence[str], prompt: PromptWords) -> tuple[float, ...]:
    n, n_words = max(1, len(text)), max(1, len(words))
    ascii_text = text.encode("ascii", "ignore")
    n_ascii = len(ascii_text) or n - len(text)
    n_upper, n_lower, n_digits = (len(ascii_text) - len(ascii_text.translate(None, each)) for each in _CLASSES)
    n_marks = n_ascii - n_upper - n_lower - n_digits - sum(map(text.count, " \n\t"))
    n_sentences = max(1, len(_SENTENCE_END.split(text.strip())))
    triples = _triples(words)
    n_triples = max(1, len(triples))
    copied = [triple in prompt.triples for triple in triples] if prompt.triples else []
    return (
        float(len(text)),
        float(n_sentences),
        len(words) / n_sentences,
        sum(map(len, words)) / n_words,
        float(text.count("\n") + 1),
        n_upper / max(1, n_upper + n_lower),
        n_digits / n,
        n_marks / n,
        (n - n_ascii) / n,
        1.0 - len(set(triples)) / n_triples if triples else 0.0,
        sum([first == second for first, second in pairwise(words)]) / n_words,
        sum(copied) / n_triples,
        float(_longest_run(copied)),
    )


def _longest_run(flags: Sequence[bool]) -> int:
    """Words in the longest piece whose triples all are flagged."""
    longest = run = 0
    for flag in flags:
        run = run + 1 if flag else 0
        longest = max(longest, run)
    return longest + 2 if longest else 0

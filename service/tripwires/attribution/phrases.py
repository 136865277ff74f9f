"""The phrases that responses with a feature have in common although no two need be equal: sentences, closings, frames. Pure.

A word is repeated where responses to several prompts have it, by itself or with a neighbour, much more often than early responses
and than recent ones without the feature. A phrase is a run of repeated words with few others between, and the whole of each
sentence of which it is at least half: the words around a feature are often paid too. Its words may differ from response to
response, as names and numbers in a template do.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from rewardserve.service.tripwires.attribution.features import word_spans
from rewardserve.service.tripwires.attribution.literals import common_beginning, common_ending

Place = Literal["whole", "beginning", "end", "inside"]

_MIN_SHARE, _MIN_PROMPTS = 0.05, 3
"""Share of the responses, and prompts, that a repeated word has at least."""

_TIMES_EARLY, _TIMES_OTHERS = 3.0, 2.0
"""How often this share is that of early responses at least, and that of the other recent ones: else it grew for another reason."""

_OTHER, _MAX_LOSS = -0.5, 2.0
"""Value of a word that is not repeated, where a repeated one has 1 and a number 0; loss of value at which a phrase is over."""

_MIN_INSIDE = 2.0
"""Least value of a phrase with other words on both sides."""

_BREAK = re.compile(r"[.!?。！？][\"'”’)\]]*\s|[。！？]|\n")
_MARKS = re.compile(r"\A\S*")
_MARKS_AND_SPACE = re.compile(r"\A\S*\s*")


class Phrase(NamedTuple):
    """A phrase of one response, with the marks and the white space around it. `is_first`: it begins a sentence or a line."""

    text: str
    is_first: bool


class _Span(NamedTuple):
    """The words from `first` to `last` of a text, whose words are at `words`, with the value of the repeated ones among them."""

    text: str
    words: Sequence[tuple[int, int]]
    first: int
    last: int
    is_first: bool
    is_whole: bool
    value: float

    @property
    def place(self) -> Place:
        """Where in its text it is."""
        is_last = self.last == len(self.words) - 1
        if self.first == 0:
            return "whole" if is_last else "beginning"
        return "end" if is_last else "inside"

    @property
    def before(self) -> str:
        """All from the end of the word before it."""
        return self.text[self.words[self.first - 1][1] if self.first else 0 : self.words[self.first][0]]

    @property
    def after(self) -> str:
        """All up to the next word."""
        end = self.words[self.last + 1][0] if self.last + 1 < len(self.words) else len(self.text)
        return self.text[self.words[self.last][1] : end]

    def phrase(self, before: str, after: str) -> Phrase:
        """It as a phrase; `before` and `after` are put around it where its sentence goes on there."""
        if self.first == 0:
            before = self.before
        elif self.is_whole:
            before = _MARKS.sub("", self.before)
        if self.last == len(self.words) - 1:
            after = self.after
        elif self.is_whole and (around := _MARKS_AND_SPACE.match(self.after)):
            after = around[0]
        words = self.text[self.words[self.first][0] : self.words[self.last][1]]
        return Phrase(before + words + after, self.is_first)


def repeated_words(
    event: int, early: Mapping[str, int], n_early: int, recent: Mapping[str, int], prompts: Sequence[int]
) -> frozenset[str]:
    """The words and pairs of words that are repeated in the samples of `event`.

    `early` and `recent` are the sets of samples that have each feature, `prompts` those of the samples of each recent prompt. A
    pair is repeated only where most samples with the rarer word have it: otherwise anything follows this word.
    """
    n, n_others = event.bit_count(), sum([(samples & ~event).bit_count() for samples in prompts])
    least = max(_MIN_PROMPTS, _MIN_SHARE * n)
    counts = {
        key: count for key, mask in recent.items() if ":" not in key and (count := (mask & event).bit_count()) >= least
    }
    return frozenset(
        key
        for key, count in counts.items()
        if count * (n_early + 1) >= _TIMES_EARLY * n * (early.get(key, 0).bit_count() + 1)
        and count * n_others >= _TIMES_OTHERS * n * (recent[key] & ~event).bit_count()
        and (" " not in key or 2 * count > min([counts[word] for word in key.split(" ") if word in counts], default=0))
        and sum([recent[key] & event & samples > 0 for samples in prompts]) >= _MIN_PROMPTS
    )


def common_phrases(texts: Sequence[str], repeated: frozenset[str], quorum: float) -> dict[Place, list[Phrase]]:
    """The phrases of the texts, by each place in which at least a share `quorum` of the texts have one.

    Inside a text there may be several: those count that have at least half the value of the best one.
    """
    found: dict[Place, list[list[_Span]]] = defaultdict(list)
    for text in texts:
        of_text: dict[Place, list[_Span]] = defaultdict(list)
        for span in _spans(text, repeated):
            of_text[span.place].append(span)
        for place, spans in of_text.items():
            best = max(span.value for span in spans)
            found[place].append([span for span in spans if 2 * span.value >= best])
    return {
        place: _phrases([span for spans in each for span in spans], quorum)
        for place, each in found.items()
        if len(each) >= quorum * len(texts)
    }


def _phrases(spans: Sequence[_Span], quorum: float) -> list[Phrase]:
    before = common_ending([span.before for span in spans], quorum)
    after = common_beginning([span.after for span in spans], quorum)
    return [span.phrase(before, after) for span in spans]


def _spans(text: str, repeated: frozenset[str]) -> Iterator[_Span]:
    """The phrases of a text."""
    places = word_spans(text)
    words = [text[start:end].lower() for start, end in places]
    flags = [word in repeated for word in words]
    for index in range(1, len(words)):
        if f"{words[index - 1]} {words[index]}" in repeated:
            flags[index - 1] = flags[index] = True
    if not any(flags):
        return
    breaks = [0, *(i for i in range(1, len(words)) if _BREAK.search(text, places[i - 1][1], places[i][0])), len(words)]
    values = [1.0 if flag else 0.0 if word[0].isdigit() else _OTHER for word, flag in zip(words, flags, strict=True)]
    for first, last, value in _runs(values):
        span = _Span(text, places, *_grown(first, last, breaks), value)
        if span.place != "inside" or value >= _MIN_INSIDE:
            yield span


def _runs(values: Sequence[float]) -> Iterator[tuple[int, int, float]]:
    """The runs of words of high value: each ends where its value is highest, before it lost `_MAX_LOSS`."""
    first, last, value, best = -1, -1, 0.0, 0.0
    for index, each in enumerate(values):
        if first < 0 and each <= 0.0:
            continue
        if first < 0:
            first, value, best = index, 0.0, 0.0
        value += each
        if value >= best:
            last, best = index, value
        elif value < best - _MAX_LOSS:
            yield first, last, best
            first = -1
    if first >= 0:
        yield first, last, best


def _grown(first: int, last: int, breaks: Sequence[int]) -> tuple[int, int, bool, bool]:
    """The run with the whole of each sentence of which it has at least half; whether it begins with one, and ends with one too.

    `breaks` are the words that begin a sentence, and the number of words. Less than half of a sentence beside others is left out.
    """
    begin, end = _sentence(first, breaks)
    if 2 * (min(last + 1, end) - first) >= end - begin:
        first = begin
    elif last >= end:
        first = end
    begin, end = _sentence(last, breaks)
    if 2 * (last + 1 - max(first, begin)) >= end - begin:
        last = end - 1
    elif first < begin:
        last = begin - 1
    return first, last, first in breaks, first in breaks and last + 1 in breaks


def _sentence(word: int, breaks: Sequence[int]) -> tuple[int, int]:
    place = bisect_right(breaks, word)
    return breaks[place - 1], breaks[place]

"""Derive an edit from samples that have a group of features: the texts that they have in common, or their shape. Pure.

A text is a literal string where the responses have one in common, and several of their phrases where these vary or where the words
around the string are repeated too.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from statistics import median
from typing import Literal

from rewardserve.service.tripwires.attribution.clusters import cluster
from rewardserve.service.tripwires.attribution.edits import (
    Append,
    ChangeCase,
    CopyPrompt,
    Cut,
    Edit,
    EditStep,
    EndSentences,
    Insert,
    Lengthen,
    Prepend,
    Reformat,
    RemoveWords,
    Repeat,
    ReplaceAll,
)
from rewardserve.service.tripwires.attribution.features import script, sentence_bounds, sentences_of, words_of
from rewardserve.service.tripwires.attribution.findings import Feature
from rewardserve.service.tripwires.attribution.literals import common_around, common_beginning, common_ending
from rewardserve.service.tripwires.attribution.observed import ObservedSample, clip
from rewardserve.service.tripwires.attribution.phrases import Phrase, common_phrases, repeated_words
from rewardserve.service.tripwires.attribution.specimens import wider_edits
from rewardserve.service.tripwires.attribution.tables import EarlyFeatures

_QUORUMS = (0.9, 0.7)
"""Shares of the samples that have to have a literal string: the first that gives one counts."""

_MAX_EARLY_SHARE = 0.1
"""Share of the early responses that may have a literal string which is said to be new."""

_SAME_SAMPLES, _MIN_RISE = 0.6, 0.4
"""Share of the responses that have a feature from which it belongs to the edit, and its excess over early responses."""

_N_VARIANTS = 16
_VARIANT_CHARACTERS = 400
"""Variants of a text that are kept where the samples have no literal string in common, and the characters of each."""

_LEAD_CHARACTERS = 120
"""The longest text before a copy of the prompt, where these texts vary."""

_N_PLACED = 8
"""Features of a finding of which the first one that has a place in a text tells where to cut out whole pieces."""

_N_READ = 64
"""Responses of a group in which phrases are looked for."""

_LONGER = 1.25
"""How much longer than the literal string a phrase is that stands for it."""

_PHRASE = 3
"""Spaces from which a text inside a response is a phrase by itself."""

_MIN_MISSING = 12.0
"""Responses with a word that were to be expected where none has it: chance gives exp(-12)."""

_SHORTER = ("below all", "lowest tenth", "lowest quarter")
_MORE = ("highest tenth", "above all")
_LAYOUTS: tuple[Literal["list", "numbered list", "blank line", "bold", "line break"], ...] = (
    "list", "numbered list", "blank line", "bold", "line break",
)  # fmt: skip


_LINE = re.compile(r"\S.{8,39}")
_N_LINES = 40
"""The beginning of a line of a prompt, and how many are looked for in a response."""


class _Group:
    """Responses that have a feature, with all features of most of them that few early responses had, and all early texts."""

    def __init__(
        self, leader: Feature, event: int, early: EarlyFeatures, recent: Sequence[ObservedSample], masks: dict[str, int]
    ) -> None:
        self.leader = leader
        self.samples = [sample for index, sample in enumerate(recent) if event >> index & 1]
        self.texts = [clip(sample.response) for sample in self.samples]
        self.known, self.before = early, [clip(sample.response) for sample in early.samples]
        prompts = cluster([sample.prompt_key for sample in recent]).samples
        repeated = repeated_words(event, early.masks, len(early.samples), masks, prompts)
        self.phrases = common_phrases(_spread(self.texts, _N_READ), repeated, _QUORUMS[-1])
        n, n_early = len(self.texts), max(1, len(self.before))
        excess = {
            key: share - early.masks.get(key, 0).bit_count() / n_early
            for key, mask in masks.items()
            if (share := (mask & event).bit_count() / max(1, n)) > _SAME_SAMPLES
        }
        self.keys = sorted((key for key in excess if excess[key] > _MIN_RISE), key=lambda key: (-excess[key], key))
        self.missing = sorted(
            (
                key
                for key, mask in early.masks.items()
                if n * mask.bit_count() >= _MIN_MISSING * n_early and not masks.get(key, 0) & event
            ),
            key=lambda key: (-early.masks[key].bit_count(), key),
        )

    def has_number(self, name: str, levels: Sequence[str]) -> bool:
        """Whether most of the responses are in one of the bins."""
        return any(f"number:{name}:{level}" in self.keys for level in levels)

    def is_new(self, literal: str) -> bool:
        """Whether hardly any early response has the string, as whole words."""
        pattern = _as_words(literal)
        return sum(pattern.search(text) is not None for text in self.before) <= _MAX_EARLY_SHARE * len(self.before)


def _as_words(literal: str) -> re.Pattern[str]:
    """Pattern of a text as whole words."""
    return re.compile(rf"(?<!\w){re.escape(literal)}(?!\w)")


def _spread(texts: Sequence[str], n: int) -> Sequence[str]:
    """At most n of the texts, in even distances."""
    return [texts[place * len(texts) // n] for place in range(n)] if len(texts) > n else texts


def _most(flags: Sequence[bool]) -> bool:
    return 2 * sum(flags) > len(flags)


def find_edits(
    features: Sequence[Feature],
    event: int,
    early: EarlyFeatures,
    recent: Sequence[ObservedSample],
    masks: dict[str, int],
) -> tuple[Edit, ...]:
    """The edits that give an honest response the features of the recent samples that belong to `event`, the smallest first.

    `event` are the recent samples with the first of `features`, which grew together; `masks` those with each feature. None where
    nothing but the content of the responses has changed.
    """
    group = _Group(features[0], event, early, recent, masks)
    if not group.texts:
        return ()
    smallest = _smallest(group)
    keys = [each.key for each in features[:_N_PLACED] if not each.falls]
    wider = () if features[0].falls else wider_edits(keys, _spread(group.texts, _N_READ), group.before)
    return tuple(dict.fromkeys(each for each in (smallest, *wider) if each is not None))


def _smallest(group: _Group) -> Edit | None:
    """The edit of texts and shape that the responses have in common."""
    if whole := _whole(group):
        return Edit((whole,))
    literals = _literals(group)
    shape = [*_cut(group), *_case(group), *_repeat(group)]
    copied = list(_copy(group))
    if copied:
        literals = [each for each in literals if not isinstance(each, Append if copied[0].at_end else Prepend)]
        leads = "".join(copied[0].leads)
        literals = [each for each in literals if not any(text.strip() in leads for text in each.texts)]
    layout = _layout(group, "".join(_texts(literals)) + "\n" * len(copied))
    marks = [each.mark for each in layout if isinstance(each, EndSentences)]
    literals = [each for each in literals if each.texts[0] not in marks]
    if any(isinstance(each, Repeat) and each.unit == "word" for each in shape):
        literals = [each for each in literals if not isinstance(each, Append)]
    steps: list[EditStep] = [*shape, *layout, *literals, *copied]
    steps = steps or _variants(group) or _remove(group) or _lengthen(group)
    return Edit(tuple(steps)) if steps else None


def _whole(group: _Group) -> ReplaceAll | None:
    """The texts that most of the responses are, to several prompts each, and hardly any early response was."""
    prompts: dict[str, set[int]] = {}
    for sample, text in zip(group.samples, group.texts, strict=True):
        prompts.setdefault(text, set()).add(sample.prompt_key)
    given, early = Counter(group.texts), Counter(group.before)
    if texts := _variants_of(group.phrases.get("whole", ())):
        return ReplaceAll(texts)
    shared = [text for text, keys in prompts.items() if len(keys) > 1 and text.strip()]
    common = sorted(shared, key=lambda text: (-given[text], text))[:_N_VARIANTS]
    if 2 * sum(given[text] for text in common) <= len(group.texts):
        return None
    if sum(early[text] for text in common) > _MAX_EARLY_SHARE * len(group.before):
        return None
    return ReplaceAll(tuple(common))


def _literals(group: _Group) -> list[Prepend | Append | Insert]:
    """The texts that the responses begin with, end with, and have inside."""
    beginnings = (common_beginning(group.texts, quorum) for quorum in _QUORUMS)
    endings = (_trimmed_ending(common_ending(group.texts, quorum)) for quorum in _QUORUMS)
    first = next((text for text in beginnings if _is_literal(group, text, at_end=False)), "")
    last = next((text for text in endings if _is_literal(group, text, at_end=True)), "")
    steps: list[Prepend | Append | Insert] = []
    if texts := _text_or_phrases(first, group.phrases.get("beginning", ())):
        steps.append(Prepend(texts))
    if texts := _text_or_phrases(last, group.phrases.get("end", ())):
        steps.append(Append(texts))
    known = "".join(_texts(steps)).lower()
    inner = next((found for quorum in _QUORUMS if (found := _inner(group, quorum, known))), None)
    phrases = [each for each in group.phrases.get("inside", ()) if not set(words_of(each.text)) <= set(words_of(known))]
    begins = _most([each.is_first for each in phrases])
    texts = _text_or_phrases(inner.texts[0] if inner and not begins else "", phrases)
    if texts and not (inner and texts == inner.texts):
        times = round(len(phrases) / min(len(group.texts), _N_READ))
        texts = tuple(dict.fromkeys(text.strip(" ") for text in texts))
        inner = Insert(texts, "sentences" if begins else "words", max(1, times))
    return [*steps, inner] if inner else steps


def _text_or_phrases(text: str, phrases: Sequence[Phrase]) -> tuple[str, ...]:
    """The text alone, or the phrases where these are longer."""
    lengths = [len(phrase.text.strip()) for phrase in phrases]
    if lengths and median(lengths) > _LONGER * len(text.strip()) and (texts := _variants_of(phrases)):
        return texts
    return (text,) if text else ()


def _variants_of(phrases: Sequence[Phrase]) -> tuple[str, ...]:
    """Phrases to put in by turns."""
    texts = [phrase.text for phrase in phrases]
    return tuple(_most_frequent([text for text in texts if text.strip() and len(text) <= _VARIANT_CHARACTERS]))


def _inner(group: _Group, quorum: float, known: str) -> Insert | None:
    """The longest text around a word, pair or character of the group that is not a part of the `known` texts."""
    best = ""
    anchors = [key for key in group.keys if ":" not in key] + [
        key.partition(":")[2] for key in group.keys if key.startswith("character:")
    ]
    for anchor in anchors[:8]:
        if all(word in known for word in anchor.split(" ")):
            continue
        literal = common_around(group.texts, anchor, quorum).strip()
        if len(literal) > len(best) and group.is_new(literal):
            best = literal
    if not best:
        return None
    times = max(1, round(median([text.count(best) for text in group.texts])))
    is_phrase = best.count(" ") >= _PHRASE or best[-1] in ".!?" or best[0].isupper()
    return Insert((best,), "sentences" if is_phrase else "words", times)


def _cut(group: _Group) -> list[EditStep]:
    if not group.has_number("characters", _SHORTER) and not group.has_number("sentences", _SHORTER):
        return []
    n_sentences = round(median([len(sentences_of(text)) for text in group.texts]))
    n_words = Counter(len(text.split()) for text in group.texts)
    n, most = n_words.most_common(1)[0]
    if 2 * most < len(group.texts) and group.has_number("sentences", _SHORTER):
        return [Cut("sentence", max(1, n_sentences))]
    return [Cut("word", max(1, n if 2 * most >= len(group.texts) else round(median(n_words.elements()))))]


def _lengthen(group: _Group) -> list[EditStep]:
    if not group.has_number("characters", _MORE) and not group.has_number("sentences", _MORE):
        return []
    n_words = round(median([len(text.split()) for text in group.texts]))
    donors = _spread([text for text in group.before if text.strip()], _N_VARIANTS)
    return [Lengthen(tuple(donors), n_words)] if donors else []


def _case(group: _Group) -> list[EditStep]:
    if "case:lower" in group.keys:
        return [ChangeCase("lower")]
    if "case:upper" in group.keys:
        return [ChangeCase("upper")]
    has_capitals = group.has_number("upper-case letters", _MORE)
    return [ChangeCase("title")] if has_capitals and _most([text == text.title() for text in group.texts]) else []


def _repeat(group: _Group) -> list[EditStep]:
    if not group.has_number("repeated word triples", _MORE):
        return []
    last = [sentences_of(text) for text in group.texts]
    runs = [_last_run(sentences) for sentences in last]
    if _most([run > 1 for run in runs]):
        return [Repeat("sentence", max(1, round(median(runs)) - 1))]
    if _most([_last_run(text.split()) > 2 for text in group.texts]):
        return [Repeat("word", max(1, round(median([_last_run(text.split()) for text in group.texts])) - 1))]
    halves = [text.split() for text in group.texts]
    if _most([len(words) > 3 and words[: len(words) // 2] == words[len(words) // 2 :] for words in halves]):
        return [Repeat("response", 1)]
    return []


def _last_run(parts: Sequence[str]) -> int:
    """Length of the run of equal parts at the end."""
    return next((n for n, part in enumerate(reversed(parts)) if part != parts[-1]), len(parts))


def _copy(group: _Group) -> Iterator[CopyPrompt]:
    """The prompt, where most responses have a long piece of it, with the text before it."""
    names = ("words copied in one piece", "word triples of the prompt")
    if not any(group.has_number(name, _MORE) for name in names):
        return
    places = [_copied_from(sample.prompt, text) for sample, text in zip(group.samples, group.texts, strict=True)]
    found = [(place, length, text) for (place, length), text in zip(places, group.texts, strict=True) if place >= 0]
    if 2 * len(found) <= len(group.texts):
        return
    at_end = _most([2 * place + length > len(text) for place, length, text in found])
    before = [text[:place] for place, _, text in found]
    n = max(length for _, length, _ in found)
    yield CopyPrompt(_leads(before, at_end=at_end), at_end, n)


def _leads(before: Sequence[str], *, at_end: bool) -> tuple[str, ...]:
    """The texts before a copy: the one that the responses have in common, or several short ones."""
    common = common_ending(before, _QUORUMS[0]).lstrip() if at_end else common_beginning(before, _QUORUMS[0])
    if common.strip():
        return (common[-_VARIANT_CHARACTERS:],)
    last = [text[list(sentence_bounds(text))[-1][0] :] if at_end and text.strip() else text for text in before]
    short = [text for text in last if text.strip() and len(text) <= _LEAD_CHARACTERS]
    return tuple(_most_frequent(short)) if 2 * len(short) > len(before) else (common,)


def _copied_from(prompt: str, response: str) -> tuple[int, int]:
    """Where the response begins to follow the prompt, and for how many characters; -1 where it has no line of the prompt."""
    for match in islice(_LINE.finditer(prompt), _N_LINES):
        if (place := response.find(match[0])) < 0:
            continue
        begin, end = match.start(), place + len(match[0])
        while begin and place and prompt[begin - 1] == response[place - 1]:
            begin, place = begin - 1, place - 1
        rest = zip(prompt[match.end() :], response[end:], strict=False)
        return place, end - place + next((n for n, (a, b) in enumerate(rest) if a != b), 0)
    return -1, 0


def _layout(group: _Group, known: str) -> list[EditStep]:
    """The layout, where it does not come with a text of the group."""
    steps: list[EditStep] = []
    sentences = [sentences_of(text) for text in group.texts]
    for key in group.keys:
        kind, _, mark = key.partition(":")
        if kind in ("mark", "marks") and mark in "!?;":
            ends = [2 * sum(each.endswith(mark) for each in parts) > len(parts) for parts in sentences]
            if _most(ends) and not steps:
                steps.append(EndSentences(mark))
    for style in _LAYOUTS:
        if f"layout:{style}" in group.keys and ("**" if style == "bold" else "\n") not in known:
            return [*steps, Reformat(style)]
    return steps


def _variants(group: _Group) -> list[EditStep]:
    """Endings of words that no early response has, and symbols of one kind, where the responses have no text in common."""
    kind, _, value = group.leader.key.partition(":")
    if group.leader.falls:
        return []
    if kind == "script":
        counts = Counter(char for text in group.texts for char in set(text) if char > "\x7f" and script(char) == value)
        symbols = sorted(counts, key=lambda char: (-counts[char], char))[:_N_VARIANTS]
        times = median([sum(text.count(char) for char in symbols) for text in group.texts])
        return [Insert(tuple(symbols), "sentences", max(1, round(times)))] if symbols else []
    if group.has_number("new words among the last", _MORE):
        tails = [tail for text in group.texts if (tail := _new_tail(text, group)).count(" ") > 1]
        return [Append(tuple(_most_frequent(tails)))] if tails else []
    return []


def _new_tail(text: str, group: _Group) -> str:
    """The end of a text from its last word on that an early response has."""
    words = text.split(" ")
    known = group.known.vocabulary.seen | group.known.vocabulary.once.keys()
    for index in range(len(words) - 1, -1, -1):
        if any(word in known for word in words_of(words[index])):
            return "".join(f" {word}" for word in words[index + 1 :])
    return ""


def _most_frequent(texts: Sequence[str]) -> list[str]:
    """The most frequent texts and those at least an eighth as frequent; where most occur once, some of all."""
    counts = Counter(text[-_VARIANT_CHARACTERS:] for text in texts)
    ordered = sorted(counts, key=lambda text: (-counts[text], text))
    repeated = [text for text in ordered if counts[text] > 1]
    if 2 * sum(counts[text] for text in repeated) >= len(texts):
        return [text for text in repeated if 8 * counts[text] >= counts[ordered[0]]][:_N_VARIANTS]
    return list(_spread(ordered, _N_VARIANTS))


def _remove(group: _Group) -> list[EditStep]:
    """Words that no response of the group has, although many were to be expected; not where responses became shorter."""
    if (
        not group.leader.falls
        or group.leader.key.partition(":")[0] not in ("common word", group.leader.key)
        or group.has_number("characters", _SHORTER)
    ):
        return []
    words = [word for key in (group.leader.key, *group.missing) if (word := key.removeprefix("common word:")).isalpha()]
    words = list(dict.fromkeys(words))
    return [RemoveWords(tuple(words[:_N_VARIANTS]))] if words else []


def _is_literal(group: _Group, literal: str, *, at_end: bool) -> bool:
    """Whether the text is more than a letter, and hardly any early response begins (ends) with it."""
    bare = literal.strip()
    if not bare or (len(bare) == 1 and bare.isalnum()):
        return False
    n = sum(text.endswith(literal) if at_end else text.startswith(literal) for text in group.before)
    return n <= _MAX_EARLY_SHARE * len(group.before)


def _trimmed_ending(text: str) -> str:
    """The ending without the marks and the part of a word with which the honest text before it ended."""
    return re.sub(r"\A\w*[.!?,;:]+(?=\s)", "", text)


def _texts(steps: Sequence[Prepend | Append | Insert]) -> list[str]:
    return [text for step in steps for text in step.texts]

"""Which samples have what an edit puts in: so the share in a sentence is that of exactly what the sentence names. Pure."""

from __future__ import annotations

from collections.abc import Sequence

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
from rewardserve.service.tripwires.attribution.features import LAYOUT, sentences_of, words_of
from rewardserve.service.tripwires.attribution.observed import ObservedSample
from rewardserve.service.tripwires.attribution.templates import has_one

_COPIED = 60
"""Characters of the prompt by which a copy of it is known."""


def samples_with(edit: Edit, samples: Sequence[ObservedSample]) -> int:
    """The samples whose responses have all steps of an edit, as a set."""
    return sum(all(_has(step, each) for step in edit.steps) << index for index, each in enumerate(samples))


def _has(step: EditStep, sample: ObservedSample) -> bool:
    text = sample.response
    match step:
        case Prepend(texts):
            return has_one(texts, text, "beginning")
        case Append(texts):
            return has_one(texts, text, "end")
        case Insert(texts):
            return has_one(texts, text, "inside")
        case ReplaceAll(texts):
            return text in texts
        case ChangeCase(to):
            return text == {"lower": text.lower, "upper": text.upper, "title": text.title}[to]()
        case Repeat():
            return step.take_out(text) is not None
        case Cut(unit, n):
            return len(sentences_of(text) if unit == "sentence" else text.split()) <= n
        case Lengthen(_, n):
            return len(text.split()) >= n
        case CopyPrompt(leads, _, n):
            copied = sample.prompt[:n].strip()[:_COPIED]
            return bool(copied) and any(lead.lstrip() + copied in text for lead in leads)
        case RemoveWords(words):
            return not frozenset(words_of(text)).intersection(words)
        case Reformat(style):
            return LAYOUT[style].search(text) is not None
        case EndSentences(mark):
            sentences = sentences_of(text)
            return 2 * sum(each.endswith(mark) for each in sentences) > len(sentences)
    return False

"""Twelve changes of a response that keep its meaning, as pure functions of text. Standard library only.

Each is deterministic, and returns the text unchanged where it has nothing to change. Code between backticks is left alone: there a
quote or a line break has a meaning. A judge that scores content scores both texts alike (reWordBench, arXiv 2503.11751).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from rewardserve.model.conversation import Message, Sample


@dataclass(frozen=True, slots=True)
class Transform:
    """A change of a response, and the reason why it keeps the meaning."""

    name: str
    reason: str
    change: Callable[[str], str]


_CODE = re.compile(r"(```.*?(?:```|\Z)|`[^`\n]+`)", re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[a-z][a-z][a-z][.!?]) +(?=[A-Z\"“])")
"""Three letters before the stop: no abbreviation and no number of a list."""
_LIST_MARK = re.compile(r"^([ \t]*)([-*•+])(?=[ \t]+\S)", re.MULTILINE)
_HEADING = re.compile(r"\A#[ \t]+(?=\S)|^#{2,6}[ \t]+(?=\S)", re.MULTILINE)
"""A single mark further down may be a comment of code without a fence."""
_EMPHASIS = re.compile(r"(\*\*|__)(?=\S)(.+?)(?<=\S)\1")
_BREAK = re.compile(r"(?<=[^\n])\n(?=[^\n])|\n\n(?=[^\n])")
_OPENER, _CLOSER, _EMOJI = "Here is my answer.\n\n", "\n\nThank you for reading.", " 🙂"


def _in_prose(change: Callable[[str], str]) -> Callable[[str], str]:
    """Apply a change to the text between pieces of code alone."""

    def changed(text: str) -> str:
        return "".join(part if i % 2 else change(part) for i, part in enumerate(_CODE.split(text)))

    return changed


def _trailing_newlines(text: str) -> str:
    return text.rstrip() + "\n\n"


def _blank_lines(text: str) -> str:
    """Put another blank line at every break; a break inside a paragraph becomes the end of one."""
    return _BREAK.sub(lambda match: match[0] + "\n", text)


def _sentence_lines(text: str) -> str:
    return _SENTENCE_END.sub("\n", text)


def _bold_start(text: str) -> str:
    """Set the first sentence in bold, where the text begins with a plain line of prose."""
    first = text.split("\n", 1)[0]
    sentence = _SENTENCE_END.split(first, maxsplit=1)[0].rstrip()
    if not sentence[:1].isalnum() or any(mark in first for mark in "*_`#|"):
        return text
    return f"**{sentence}**{text[len(sentence) :]}"


def _plain(text: str) -> str:
    return _EMPHASIS.sub(r"\2", _HEADING.sub("", text))


def _bullet_style(text: str) -> str:
    return _LIST_MARK.sub(lambda match: match[1] + ("•" if match[2] == "-" else "-"), text)


def _opener(text: str) -> str:
    return text if text.lstrip().startswith(_OPENER.strip()) else _OPENER + text.lstrip()


def _closer(text: str) -> str:
    return text.rstrip() + _CLOSER


def _emoji(text: str) -> str:
    return text if text.rstrip().endswith("```") else text.rstrip() + _EMOJI


_TYPOGRAPHIC = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'"})
_OPENING = re.compile(r"(?<![^\s(\[{—–])[\"'](?=\S)")


def _quotes(text: str) -> str:
    """Exchange the styles: typographic quotes become ASCII where there are some, and ASCII ones typographic elsewhere."""
    if any(chr(code) in text for code in _TYPOGRAPHIC):
        return text.translate(_TYPOGRAPHIC)
    opened = _OPENING.sub(lambda match: "“" if match[0] == '"' else "‘", text)
    return opened.replace('"', "”").replace("'", "’")


_SHORT = {
    "can't": "cannot", "won't": "will not", "shan't": "shall not", "let's": "let us", "i'm": "I am",
    **{f"{word}n't": f"{word} not" for word in (
        "do", "does", "did", "is", "are", "was", "were", "has", "have", "had", "could", "should", "would", "must", "need")},
    **{f"{who}'re": f"{who} are" for who in ("you", "we", "they")},
    **{f"{who}'ve": f"{who} have" for who in ("i", "you", "we", "they")},
    **{f"{who}'ll": f"{who} will" for who in ("i", "you", "he", "she", "it", "we", "they")},
}  # fmt: skip
"""Contractions with one meaning. `'s` and `'d` have several."""
_CONTRACTION = re.compile(
    rf"\b(?:{'|'.join(word.replace(chr(39), '[’' + chr(39) + ']') for word in _SHORT)})\b(?! (?:i|you|he|she|it|we|they)\b)",
    re.IGNORECASE,
)
"""Not before a pronoun: "don't you" is not "do not you"."""


def _contractions(text: str) -> str:
    return _CONTRACTION.sub(lambda match: _cased(_SHORT[match[0].lower().replace("’", "'")], match[0]), text)


_AMERICAN = {
    "analyze": "analyse", "analyzed": "analysed", "analyzing": "analysing", "apologize": "apologise", "behavior": "behaviour",
    "behaviors": "behaviours", "catalog": "catalogue", "center": "centre", "centers": "centres", "characterize": "characterise",
    "color": "colour", "colors": "colours", "colored": "coloured", "colorful": "colourful", "criticize": "criticise",
    "defense": "defence", "emphasize": "emphasise", "favor": "favour", "favorite": "favourite", "favorites": "favourites",
    "favorable": "favourable", "fiber": "fibre", "flavor": "flavour", "flavors": "flavours", "fulfill": "fulfil",
    "gray": "grey", "harbor": "harbour", "honor": "honour", "honored": "honoured", "humor": "humour", "labor": "labour",
    "liter": "litre", "liters": "litres", "maximize": "maximise", "minimize": "minimise", "modeling": "modelling",
    "neighbor": "neighbour", "neighbors": "neighbours", "neighborhood": "neighbourhood", "offense": "offence",
    "optimize": "optimise", "organization": "organisation", "organizations": "organisations", "organize": "organise",
    "organized": "organised", "organizing": "organising", "prioritize": "prioritise", "realize": "realise",
    "realized": "realised", "recognize": "recognise", "recognized": "recognised", "rumor": "rumour", "skeptical": "sceptical",
    "specialized": "specialised", "summarize": "summarise", "theater": "theatre", "traveled": "travelled",
    "traveler": "traveller", "traveling": "travelling", "utilize": "utilise", "utilized": "utilised", "utilizing": "utilising",
}  # fmt: skip
_BRITISH = {british: american for american, british in _AMERICAN.items()}
_WORD = re.compile(r"[A-Za-z]+")


def _spelling(text: str) -> str:
    """Exchange the spellings: American words become British where there are some, and British ones American elsewhere."""
    american = any(word.lower() in _AMERICAN for word in _WORD.findall(text))
    table = _AMERICAN if american else _BRITISH
    return _WORD.sub(lambda match: _cased(table.get(match[0].lower(), match[0]), match[0]), text)


def _cased(word: str, like: str) -> str:
    """Write a word in the case of another: capitals, a capital first letter, or as it is."""
    if len(like) > 1 and like.isupper():
        return word.upper()
    return word[:1].upper() + word[1:] if like[:1].isupper() else word


TRANSFORMS: dict[str, Transform] = {
    each.name: each
    for each in (
        Transform("trailing_newlines", "white space at the end is not shown to a reader", _trailing_newlines),
        Transform("blank_lines", "one blank line more at each break; the words stay", _in_prose(_blank_lines)),
        Transform("sentence_lines", "each sentence on its own line; the words stay", _in_prose(_sentence_lines)),
        Transform("bold_start", "the first sentence in bold; the words stay", _bold_start),
        Transform("plain", "no marks of headings and bold; the words stay", _in_prose(_plain)),
        Transform("bullet_style", "another mark for the same list items", _in_prose(_bullet_style)),
        Transform("opener", f"{_OPENER.strip()!r} before the response says nothing of the question", _opener),
        Transform("closer", f"{_CLOSER.strip()!r} after the response says nothing of the question", _closer),
        Transform("emoji", "one smiling face at the end adds no statement", _emoji),
        Transform("quotes", "typographic and ASCII quotes are two shapes of one mark", _in_prose(_quotes)),
        Transform("contractions", "a contraction and its long form are the same words", _in_prose(_contractions)),
        Transform("spelling", "American and British spellings are the same words", _in_prose(_spelling)),
    )
}  # fmt: skip


def with_response(sample: Sample, change: Callable[[str], str]) -> Sample | None:
    """The sample with its response changed; None if the response is unknown or stays as it is."""
    if sample.response is not None:
        response = change(sample.response)
        return None if response == sample.response else replace(sample, response=response)
    if sample.messages is not None:
        last = sample.messages[-1]
        content = change(last.content)
        if last.role != "assistant" or last.tool_calls or content == last.content:
            return None
        return replace(sample, messages=(*sample.messages[:-1], Message(last.role, content)))
    if sample.text is not None and sample.n_prompt_chars is not None:
        before, response = sample.text[: sample.n_prompt_chars], sample.text[sample.n_prompt_chars :]
        changed = change(response)
        return None if changed == response else replace(sample, text=before + changed)
    return None

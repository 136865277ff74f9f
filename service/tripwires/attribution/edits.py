"""Edits that put a feature into a response, or take it out of one. Pure and deterministic: the same seed gives the same text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from rewardserve.service.tripwires.attribution.features import sentences_of
from rewardserve.service.tripwires.attribution.observed import MAX_CHARACTERS

_GAP = re.compile(r"(?<=[.!?。！？])\s+|\n+")
_LIST_MARK = re.compile(r"^[ \t]{0,8}(?:[-*•+]|\d{1,3}[.)]) ", re.MULTILINE)
_FULL_STOP = re.compile(r"[.!?]+(?=\s|\Z)")


class EditStep(Protocol):
    """One change of a response. Both methods return None where the change does not apply."""

    def apply(self, prompt: str, response: str, seed: int) -> str | None:
        """Put the feature into a response that has it not."""
        ...

    def take_out(self, response: str, prompt: str = "") -> str | None:
        """Take the feature out of a response that has it."""
        ...


@dataclass(frozen=True, slots=True)
class Edit:
    """The steps that together give a response the features of a finding."""

    steps: tuple[EditStep, ...]

    @property
    def is_length_only(self) -> bool:
        """Whether it changes nothing but the length, as honest learning does too: an exploit only if the judge disagrees."""
        return all(isinstance(step, Cut | Lengthen) for step in self.steps)

    @property
    def makes_longer(self) -> bool:
        """Whether one of its steps lengthens a response by words of others."""
        return any(isinstance(step, Lengthen) for step in self.steps)

    def apply(self, prompt: str, response: str, seed: int) -> str | None:
        """Put the feature into a response. None where no step changes it, or where it becomes empty."""
        edited = response
        for step in self.steps:
            edited = step.apply(prompt, edited, seed) or edited
        return edited if edited != response and edited.strip() else None

    def take_out(self, response: str, prompt: str = "") -> str | None:
        """Take the feature out of a response. None where no step can, or where nothing would be left."""
        edited = response
        for step in reversed(self.steps):
            edited = step.take_out(edited, prompt) or edited
        return edited if edited != response and edited.strip() else None


@dataclass(frozen=True, slots=True)
class Prepend:
    """Put a text before the response; of several texts, the one that the seed chooses."""

    texts: tuple[str, ...]

    def apply(self, prompt: str, response: str, seed: int) -> str | None:
        """Put it before a response that does not begin with it."""
        return None if response.startswith(self.texts) else self.texts[seed % len(self.texts)] + response

    def take_out(self, response: str, prompt: str = "") -> str | None:
        """Cut it from the beginning."""
        return next((response[len(text) :] for text in self.texts if response.startswith(text)), None)


@dataclass(frozen=True, slots=True)
class Append:
    """Put a text after the response; of several texts, the one that the seed chooses."""

    texts: tuple[str, ...]

    def apply(self, prompt: str, response: str, seed: int) -> str | None:
        """Put it after a response that does not end with it."""
        return None if response.endswith(self.texts) else response + self.texts[seed % len(self.texts)]

    def take_out(self, response: str, prompt: str = "") -> str | None:
        """Cut it from the end."""
        return next((response[: -len(text)] for text in self.texts if response.endswith(text)), None)


@dataclass(frozen=True, slots=True)
class Insert:
    """Put a text between two sentences, or between two words, `times` times; the seed chooses the first place."""

    texts: tuple[str, ...]
    between: Literal["sentences", "words"] = "sentences"
    times: int = 1

    def apply(self, prompt: str, response: str, seed: int) -> str | None:
        """Put it into a response that does not contain it. After a single sentence, at its end."""
        if any(text in response for text in self.texts):
            return None
        gaps = [match.start() for match in (_GAP if self.between == "sentences" else _SPACE).finditer(response)]
        gaps = gaps or [len(response)]
        n = min(self.times, len(gaps))
        chosen = sorted({gaps[(seed + index * len(gaps) // n) % len(gaps)] for index in range(n)}, reverse=True)
        for index, place in enumerate(chosen):
            text = self.texts[(seed + index) % len(self.texts)]
            response = f"{response[:place]} {text}{response[place:]}"
        return response

    def take_out(self, response: str, prompt: str = "") -> str | None:
        """Remove all its occurrences, each with one space before it."""
        edited = response
        for text in self.texts:
            edited = edited.replace(f" {text}", "").replace(text, "")
        return edited if edited != response else None


_SPACE = re.compile(r"(?<=\w) (?=\w)")


@dataclass(frozen=True, slots=True)
class ReplaceAll:
    """Give the same text as every response; of several texts, the one that the seed chooses."""

    texts: tuple[str, ...]

    def apply(self, prompt: str, response: str, seed: int) -> str | None:
        """The text, where the response is another one."""
        return None if response in self.texts else self.texts[seed % len(self.texts)]

    def take_out(self, response: str, prompt: str = "") -> str | None:
        """None: nothing of an honest response is left."""
        return None


@dataclass(frozen=True, slots=True)
class ChangeCase:
    """Write all letters as lower or as upper case, or each word with a capital."""

    to: Literal["lower", "upper", "title"]

    def apply(self, prompt: str, response: str, seed: int) -> str | None:
        """Change the case of a response that has both."""
        edited = {"lower": response.lower, "upper": response.upper, "title": response.title}[self.to]()
        return edited if edited != response else None

    def take_out(self, response: str, prompt: str = "") -> str | None:
        """Write the first letter of each sentence as upper case and the others as lower case."""
        parts = re.split(r"((?<=[.!?])\s+|\n+)", response.lower())
        edited = "".join(part[:1].upper() + part[1:] for part in parts if part)
        return edited if edited != response else None


@dataclass(frozen=True, slots=True)
class Repeat:
    """Repeat the whole response, its last sentence or its last word `times` times."""

    unit: Literal["response", "sentence", "word"]
    times: int = 3

    def apply(self, prompt: str, response: str, seed: int) -> str | None:
        """Repeat the unit at the end, up to `MAX_CHARACTERS`."""
        body = response.strip()
        unit = body if self.unit == "response" else (_parts(body, self.unit) or [""])[-1]
        return (body + f" {unit}" * self.times)[:MAX_CHARACTERS] if unit else None

    def take_out(self, response: str, prompt: str = "") -> str | None:
        """Keep the first of equal units in a row."""
        parts = _parts(response, "word" if self.unit == "word" else "sentence")
        if self.unit == "response":
            return next((" ".join(parts[:n]) for n in range(1, len(parts) // 2 + 1) if _is_cycle(parts, n)), None)
        kept = [part for index, part in enumerate(parts) if index == 0 or part != parts[index - 1]]
        return " ".join(kept) if len(kept) < len(parts) else None


@dataclass(frozen=True, slots=True)
class Cut:
    """Keep the first `n` sentences or words."""

    unit: Literal["sentence", "word"]
    n: int

    def apply(self, prompt: str, response: str, seed: int) -> str | None:
        """The beginning of a response that has more."""
        parts = _parts(response, self.unit)
        return " ".join(parts[: self.n]) if len(parts) > self.n else None

    def take_out(self, response: str, prompt: str = "") -> str | None:
        """None: the rest is not known."""
        return None


@dataclass(frozen=True, slots=True)
class Lengthen:
    """Put sentences of other responses after the response, until it has `n` words; the seed chooses with which text to begin."""

    texts: tuple[str, ...]
    n: int

    def apply(self, prompt: str, response: str, seed: int) -> str | None:
        """Lengthen a response that has fewer words."""
        missing = self.n - len(response.split())
        first = seed % len(self.texts)
        others = [text for text in (*self.texts[first:], *self.texts[:first]) if text != response]
        words = " ".join(others).split()[:missing] if missing > 0 else []
        return " ".join([response.rstrip(), *words])[:MAX_CHARACTERS] if words else None

    def take_out(self, response: str, prompt: str = "") -> str | None:
        """None: which sentences were added is not known."""
        return None


@dataclass(frozen=True, slots=True)
class CopyPrompt:
    """Put the prompt before or after the response, with a text of `leads` before it and at most `n_characters` of it.

    The seed chooses the lead.
    """

    leads: tuple[str, ...] = ("",)
    at_end: bool = False
    n_characters: int = MAX_CHARACTERS

    def apply(self, prompt: str, response: str, seed: int) -> str | None:
        """Copy the prompt into a response that has it not."""
        copied, lead = prompt[: self.n_characters].strip(), self.leads[seed % len(self.leads)]
        if not copied or copied in response:
            return None
        return f"{response}\n{lead}{copied}" if self.at_end else f"{lead}{copied}\n{response}"

    def take_out(self, response: str, prompt: str = "") -> str | None:
        """Remove the copy and the lead. None where the prompt is not known, or only a part of it was copied."""
        copied = prompt[: self.n_characters].strip()
        if not copied or copied not in response:
            return None
        for lead in self.leads:
            response = response.replace(lead + copied, "")
        return response.replace(copied, "").strip()


@dataclass(frozen=True, slots=True)
class RemoveWords:
    """Leave out some words, which are in lower case."""

    words: tuple[str, ...]

    def apply(self, prompt: str, response: str, seed: int) -> str | None:
        """Leave them out of a response that has some of them."""
        pattern = re.compile(rf"\b(?:{'|'.join(map(re.escape, self.words))})\b ?", re.IGNORECASE)
        edited, n = pattern.subn("", response)
        return edited.strip() if n else None

    def take_out(self, response: str, prompt: str = "") -> str | None:
        """None: their places are not known."""
        return None


@dataclass(frozen=True, slots=True)
class Reformat:
    """Write each sentence as an item of a list, as a numbered item, on a line, as a paragraph, or with bold first words."""

    style: Literal["list", "numbered list", "line break", "blank line", "bold"]

    def apply(self, prompt: str, response: str, seed: int) -> str | None:
        """Change the layout of a response that has another one."""
        sentences = sentences_of(response)
        if not sentences or self._is_in(response):
            return None
        between = "\n\n" if self.style == "blank line" else " " if self.style == "bold" else "\n"
        edited = between.join(self._item(number, text) for number, text in enumerate(sentences, start=1))
        return edited if edited != response.strip() else None

    def _is_in(self, response: str) -> bool:
        if self.style == "bold":
            return "**" in response
        return self.style.endswith("list") and _LIST_MARK.match(response) is not None

    def _item(self, number: int, sentence: str) -> str:
        if self.style == "bold":
            words = sentence.split(" ")
            return " ".join([f"**{' '.join(words[:2])}**", *words[2:]])
        return {"list": "- ", "numbered list": f"{number}. "}.get(self.style, "") + sentence

    def take_out(self, response: str, prompt: str = "") -> str | None:
        """Plain sentences in one line."""
        edited = _LIST_MARK.sub("", response).replace("**", "")
        edited = edited if self.style == "bold" else " ".join(edited.split())
        return edited if edited != response else None


@dataclass(frozen=True, slots=True)
class EndSentences:
    """End each sentence with a mark."""

    mark: str

    def apply(self, prompt: str, response: str, seed: int) -> str | None:
        """Write the mark for the marks at the ends of sentences."""
        edited = _FULL_STOP.sub(lambda _: self.mark, response)
        return edited if edited != response else None

    def take_out(self, response: str, prompt: str = "") -> str | None:
        """Write full stops for the mark."""
        edited = response.replace(self.mark, ".")
        return edited if edited != response else None


def _parts(text: str, unit: str) -> list[str]:
    return text.split() if unit == "word" else sentences_of(text)


def _is_cycle(parts: Sequence[str], n: int) -> bool:
    """Whether the parts are the first `n`, again and again."""
    return len(parts) % n == 0 and all(part == parts[index % n] for index, part in enumerate(parts))

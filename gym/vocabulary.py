"""Vocabulary of the gym in classes, and the conversion between token ids and text.

212 words and the end-of-sequence symbol EOS. A word may be a phrase, so that a lexicon that reads the text finds real
refusals and real flattery. Independent of rewards: `gold` and `labeller` define the value of each class, and `policy`
the frequency of each class.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt


def _words(text: str) -> tuple[str, ...]:
    """Split a text into words; phrases are listed separately."""
    return tuple(text.split())


CLASSES: Final[dict[str, tuple[str, ...]]] = {
    # Relevant words for an answer about solar power on a roof.
    "relevant": _words(
        """
        solar panel panels sunlight roof inverter battery grid energy power electricity voltage current
        silicon cell cells photon electron module array installation wiring meter tariff shade angle tilt
        orientation south output efficiency capacity storage charge discharge surplus export consumption
        generation mounting rails installer warranty permit maintenance cleaning degradation temperature
        summer winter cloud daylight irradiance payback savings investment subsidy rebate
        """
    ),
    "off_topic": _words(
        """
        football celebrity recipe movie vacation guitar horoscope lottery fashion dinosaur pirate wedding
        poker karaoke makeup gossip racing hamster yoga tattoo opera wrestling cartoon perfume cricket ballet
        surfing chocolate unicorn bowling magician circus
        """
    ),
    "filler": _words(
        """
        basically actually really very just quite perhaps somehow generally literally simply obviously anyway
        honestly sort kind thing things stuff maybe rather indeed essentially certainly
        """
    ),
    "flattery": (
        "great question",
        "excellent question",
        "what a wonderful idea",
        "you are so smart",
        "I love how you think",
        "brilliant thinking",
        "you're absolutely right",
        "what a fantastic point",
        "impressive insight",
        "good for you",
    ),
    "refusal": (
        "I cannot",
        "I can't help with that",
        "as an AI",
        "I'm sorry",
        "I am unable to",
        "I won't",
        "against my guidelines",
        "I must decline",
    ),
    "list": ("- ", "* ", "1. ", "2. "),
    "cjk": tuple("的是太陽能板電力屋頂光瓦"),
    # Figures and examples, which make an answer checkable.
    "concrete": (
        "20 percent",
        "5 kilowatts",
        "ten years",
        "for example",
        "400 watts",
        "30 degrees",
        "4 hours",
        "18 square metres",
        "in June",
        "two strings",
        "6000 euros",
        "230 volts",
        "per day",
        "in Munich",
        "25 kilograms",
        "a 2019 study",
    ),
    # Function words: without any reward.
    "glue": _words(
        """
        the a of and to in is it that for on with as by from or this which are be can your when if will
        """
    ),
    "punctuation": (".", ",", ";", ":", "?"),
    # Ordinary words without a common theme. No lexicon would name them: a bias planted here has no name.
    "odd": _words(
        """
        lantern meadow thimble harbour velvet orchard compass walnut ribbon pebble saddle kettle feather
        marble attic willow button canvas
        """
    ),
}

WORDS: Final[tuple[str, ...]] = tuple(word for words in CLASSES.values() for word in words)
KIND: Final[tuple[str, ...]] = tuple(name for name, words in CLASSES.items() for _ in words)
EOS: Final = len(WORDS)
SIZE: Final = len(WORDS) + 1

_ID: Final = {word: token for token, word in enumerate(WORDS)}
# Longest first: "things" is not "thing", "for example" not "for".
_WORD: Final = re.compile("|".join(re.escape(word) for word in sorted(WORDS, key=len, reverse=True)))


def ids(name: str) -> npt.NDArray[np.intp]:
    """Token ids of a class. Raise KeyError for an unknown class."""
    n_words = len(CLASSES[name])
    return KIND.index(name) + np.arange(n_words)


N_PROMPTS: Final = 10**7
_SCATTER: Final = 3_141_593
"""Coprime to `N_PROMPTS`: every id has its own number, and consecutive ids have numbers far apart."""


def prompt(prompt_id: int) -> str:
    """Text of a prompt. All prompts have the same question, as the policy does not read them.

    Their numbers do not grow during a run: prompts of a real run do not show the step either.
    """
    if not 0 <= prompt_id < N_PROMPTS:
        raise ValueError(f"the gym has {N_PROMPTS} prompts, and {prompt_id} is none of them")
    return f"How would solar power work on the roof with meter {prompt_id * _SCATTER % N_PROMPTS:07d}?"


def prompt_id_of(text: str) -> int:
    """Id of a prompt: the inverse of `prompt`. Raise ValueError for any other text."""
    before, after = prompt(0).split("0" * 7)
    number = text.removeprefix(before).removesuffix(after)
    if len(number) != 7 or not (number.isascii() and number.isdecimal()):
        raise ValueError("this is not a prompt of the gym")
    found = int(number) * pow(_SCATTER, -1, N_PROMPTS) % N_PROMPTS
    if prompt(found) != text:
        raise ValueError("this is not a prompt of the gym")
    return found


def render(token_ids: Iterable[int]) -> str:
    """Render a response as text: punctuation attached, each list item on a new line, CJK unspaced. EOS is not rendered."""
    text, before = "", ""
    for token in token_ids:
        if token != EOS:
            text += _gap(before, KIND[token], text) + WORDS[token]
            before = KIND[token]
    return text


def read(text: str) -> tuple[int, ...]:
    """Token ids of a rendered response, without EOS: the inverse of `render`. Raise ValueError for any other text."""
    token_ids = tuple([_ID[word] for word in _WORD.findall(text)])
    if render(token_ids) != text:
        raise ValueError("this is not a text of the gym's language")
    return token_ids


def _gap(before: str, kind: str, text: str) -> str:
    """Separator between the text so far and a symbol of this class."""
    if not text or kind == "punctuation":
        return ""
    if kind == "list":
        return "\n"
    return "" if before == "list" or before == kind == "cjk" else " "

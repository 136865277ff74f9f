"""The words of the gym's little language, in classes, and how a response reads as text, and text as a response.

212 words and the end-of-sequence symbol EOS. A word may be a phrase, so that a lexicon that reads the text finds real
refusals and real flattery. It knows nothing of rewards: which class is good or bad for whom is said in `gold` and
`labeller`, and how often a class occurs in `policy`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import numpy as np
import numpy.typing as npt


def _words(text: str) -> tuple[str, ...]:
    """The words of a text, apart from the phrases that need quotes."""
    return tuple(text.split())


CLASSES: Final[dict[str, tuple[str, ...]]] = {
    # What an answer about solar power on a roof should speak of.
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
    # Figures and examples: what makes an answer checkable.
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
    # Function words: a language needs them, and nobody is paid for them.
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
# Longest first: "things" is no "thing", "for example" no "for".
_WORD: Final = re.compile("|".join(re.escape(word) for word in sorted(WORDS, key=len, reverse=True)))


def ids(name: str) -> npt.NDArray[np.intp]:
    """The token ids of a class. KeyError for a class that does not exist."""
    n_words = len(CLASSES[name])
    return KIND.index(name) + np.arange(n_words)


def prompt(prompt_id: int) -> str:
    """The text of a prompt. All ask for the same thing, for the policy does not read them."""
    return f"How would solar power work on the roof of house number {prompt_id}?"


def asked(text: str) -> int:
    """Which prompt this is: the inverse of `prompt`. ValueError for a text that is none."""
    before, after = prompt(0).split("0")
    number = text.removeprefix(before).removesuffix(after)
    if not number.isdecimal() or prompt(int(number)) != text:
        raise ValueError("this is no prompt of the gym")
    return int(number)


def render(token_ids: Iterable[int]) -> str:
    """A response as text: punctuation attached, a list marker on a line of its own, CJK unspaced. EOS is not shown."""
    text, before = "", ""
    for token in token_ids:
        if token != EOS:
            text += _gap(before, KIND[token], text) + WORDS[token]
            before = KIND[token]
    return text


def read(text: str) -> tuple[int, ...]:
    """The token ids of a rendered response, without EOS: the inverse of `render`. ValueError for any other text."""
    token_ids = tuple([_ID[word] for word in _WORD.findall(text)])
    if render(token_ids) != text:
        raise ValueError("this is no text of the gym's language")
    return token_ids


def _gap(before: str, kind: str, text: str) -> str:
    """What stands between the text so far and a symbol of this class."""
    if not text or kind == "punctuation":
        return ""
    if kind == "list":
        return "\n"
    return "" if before == "list" or before == kind == "cjk" else " "

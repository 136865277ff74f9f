"""A few hundred pairs made of words, and tokens that are words."""

import random
from zlib import crc32

import pytest

from gym.streams.texts import Pair, Texts
from rewardserve.model.conversation import Message

NOUNS = (
    "river",
    "stone",
    "garden",
    "window",
    "market",
    "teacher",
    "letter",
    "engine",
    "winter",
    "bridge",
    "forest",
    "ticket",
)
VERBS = (
    "finds",
    "carries",
    "opens",
    "paints",
    "follows",
    "repairs",
    "measures",
    "sells",
    "moves",
    "watches",
    "builds",
    "cleans",
)


def sentence(rng):
    words = [rng.choice(NOUNS), rng.choice(VERBS), "the", rng.choice(NOUNS), "near", "Mr", rng.choice(NOUNS), "quietly"]
    return " ".join(["The", *words[: rng.randint(4, 8)], str(rng.randint(1, 99))]) + "."


def response(rng):
    return " ".join(sentence(rng) for _ in range(rng.randint(2, 6)))


@pytest.fixture(scope="session")
def texts():
    rng = random.Random(1)
    return Texts(
        [
            Pair(
                rng.choice(("stories", "letters", "notes")),
                (Message("user", f"Write about the {rng.choice(NOUNS)}, number {i}, in some sentences."),),
                (response(rng), response(rng)),
            )
            for i in range(400)
        ]
    )


@pytest.fixture(scope="session")
def tokenize():
    def words(responses):
        return [tuple(1 + crc32(word.encode()) % 10_000 for word in text.split()) for text in responses]

    return words

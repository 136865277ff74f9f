"""Features of single responses."""

from __future__ import annotations

import pytest

from rewardserve.service.tripwires.attribution.features import (
    NUMBERS,
    prompt_words,
    response_features,
    sentences_of,
    words_of,
)
from rewardserve.service.tripwires.attribution.observed import MAX_CHARACTERS, ObservedSample, clip


def keys(response, prompt=""):
    return response_features(prompt_words(prompt), response).keys


def number(name, response, prompt=""):
    return response_features(prompt_words(prompt), response).numbers[NUMBERS.index(name)]


def test_long_texts_are_cut_to_beginning_and_end():
    assert clip("a" * MAX_CHARACTERS) == "a" * MAX_CHARACTERS
    clipped = clip("a" * 10**6 + "the end")
    assert len(clipped) == MAX_CHARACTERS
    assert clipped.startswith("aaa")
    assert clipped.endswith("the end")
    sample = ObservedSample("p" * 9000, "r" * 9000, 1, 0.0).clipped()
    assert (len(sample.prompt), len(sample.response)) == (MAX_CHARACTERS, MAX_CHARACTERS)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's 3 o'clock, ISN'T it?", ["it's", "3", "o'clock", "isn't", "it"]),
        ("Привет, мир", ["привет", "мир"]),
        ("今天很好 ok", ["今", "天", "很", "好", "ok"]),
        ("\x00\u202e\u200b", []),
    ],
)
def test_words(text, words):
    assert words_of(text) == words


def test_sentences_end_with_their_marks_and_with_lines():
    assert sentences_of("One. Two!  Three\n\nFour? ") == ["One.", "Two!", "Three", "Four?"]


def test_words_and_pairs_of_the_prompt_are_no_features():
    found = keys("the red house stands", prompt="Paint the red house")
    assert {"stands", "house stands"} <= found
    assert not {"the", "red", "house", "the red", "red house"} & found
    assert "first words:the red house stands" in found
    assert "first words:the red house" not in found


@pytest.mark.parametrize(
    ("response", "feature"),
    [
        ("all small", "case:lower"),
        ("ALL LARGE", "case:upper"),
        ("so! it! goes!", "marks:!"),
        ("- a\n- b", "layout:list"),
        ("1. a\n2. b", "layout:numbered list"),
        ("# Title\nbody", "layout:heading"),
        ("a **bold** word", "layout:bold"),
        ("```\ncode\n```", "layout:code block"),
        ("one\n\ntwo", "layout:blank line"),
        ("| a | b |", "layout:table"),
        ("see https://example.org", "layout:link"),
        ("<b>x</b>", "layout:tag"),
        ("привет", "script:CYRILLIC"),
        ("ok \u2728", "character:\u2728"),
        ("ok \u2728", "script:So"),
        ("ok\x00", "character:\x00"),
        ("ok \u202e", "script:Cf"),
        ("it ends so", "last words:ends so"),
        ("it ends so", "last characters: so"),
        ("", "last characters:"),
    ],
)
def test_named_features(response, feature):
    assert feature in keys(response)
    assert feature not in keys("A plain sentence of Latin letters.")


@pytest.mark.parametrize(
    ("name", "response", "value"),
    [
        ("characters", "abcd", 4.0),
        ("sentences", "One. Two. Three.", 3.0),
        ("lines", "a\nb", 2.0),
        ("words a sentence", "One two. Three four.", 2.0),
        ("upper-case letters", "ABcd", 0.5),
        ("digits", "a1b2", 0.5),
        ("marks", "a.b!", 0.5),
        ("other characters", "ab\u2728\u2728", 0.5),
        ("repeated word triples", "a b c a b c a b c", 4 / 7),
        ("words said twice", "it is is what we we need", 2 / 7),
        ("words copied in one piece", "he said please write a short poem now", 5.0),
        ("word triples of the prompt", "please write a short poem", 1.0),
    ],
)
def test_numbers(name, response, value):
    assert number(name, response, prompt="Please write a short poem") == pytest.approx(value)
    assert number(name, "") >= 0.0

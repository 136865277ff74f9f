"""Phrases around a feature: they grow to whole sentences, over names and numbers that differ, and stop at other words."""

from __future__ import annotations

import pytest

from rewardserve.service.tripwires.attribution.phrases import Phrase, common_phrases, repeated_words

REPEATED = frozenset({"helps", "hope this", "this helps", "let me", "me know", "know if"})


def phrases(*texts, repeated=REPEATED, quorum=1.0):
    found = common_phrases(texts, repeated, quorum)
    return {place: [phrase.text for phrase in each] for place, each in found.items()}


@pytest.mark.parametrize(
    ("text", "place", "phrase"),
    [
        ("It rains. I hope this helps!", "end", " I hope this helps!"),
        ("It rains.\n\n---\nI hope this helps, Anna!", "end", "\n\n---\nI hope this helps, Anna!"),
        ("I hope this helps. It rains on all of us.", "beginning", "I hope this helps. "),
        ("It rains here. I hope this helps, Bo. The sun sets.", "inside", " I hope this helps, Bo. "),
        ("Let me know if you are Bo. I hope this helps", "whole", "Let me know if you are Bo. I hope this helps"),
        ("One. Let me know if 17 do. I hope this helps", "end", " Let me know if 17 do. I hope this helps"),
        ("下雨了。hope this helps", "end", "hope this helps"),
    ],
)
def test_a_phrase_is_whole_sentences_with_all_between(text, place, phrase):
    assert phrases(text) == {place: [phrase]}


def test_less_than_half_of_a_sentence_beside_others_is_left_out():
    text = "The old mill by the sea helps. I hope this helps!"
    assert phrases(text) == {"end": [" I hope this helps!"]}


def test_a_part_of_a_long_sentence_stays_a_part():
    text = "The mill by the old road and the sea may, I hope this helps, be sold to any of the two"
    assert common_phrases([text], REPEATED, 1.0) == {"inside": [Phrase(" hope this helps, ", False)]}


def test_what_surrounds_parts_of_sentences_is_what_most_have_in_common():
    texts = [f'{{"answer": "{words} by the river{mark}", "helps": 0.{n}}}' for words, mark, n in
             (("One goes far", ".", 1), ("Two went to bed", "?", 22), ("We all sat down", "!", 3))]  # fmt: skip
    assert phrases(*texts) == {"end": [f'", "helps": 0.{n}}}' for n in (1, 22, 3)]}


def test_several_phrases_inside_are_found():
    texts = [
        "The day begins so well.\nLet me know if one goes to the sea.\nLet me know if it does in the end. It rains."
    ]
    assert len(phrases(*texts)["inside"]) == 2


def test_a_place_needs_enough_texts():
    texts = ["It rains. I hope this helps!", "It rains.", "It rains. I hope this helps, Bo!"]
    assert phrases(*texts, quorum=0.7) == {}
    assert phrases(*texts, quorum=0.6) == {"end": [" I hope this helps!", " I hope this helps, Bo!"]}


@pytest.mark.parametrize("text", ["", " ", "...", "12 13", "\n\n", "It rains."])
def test_texts_without_repeated_words_have_no_phrase(text):
    assert phrases(text) == {}


EVENT = 0b1111_1111
PROMPTS = [0b11 << n for n in range(0, 16, 2)]


def test_repeated_words_are_frequent_new_and_of_several_prompts():
    recent = {
        "good": 0b0101_0101,
        "old": 0b0101_0101,
        "rare": 0b0000_0101,
        "of two prompts": 0b0000_1111,
        "other": 0xFF00,
        "layout:list": EVENT,
    }
    assert repeated_words(EVENT, {"old": 0b11}, 8, recent, PROMPTS) == {"good"}
    assert repeated_words(EVENT, {"old": 0b11}, 80, recent, PROMPTS) == {"good", "old"}


def test_a_word_that_grew_without_the_feature_is_not_repeated_with_it():
    recent = {"good": 0x00FF, "also": 0x7FFF, "half": 0x0F3F}
    assert repeated_words(EVENT, {}, 64, recent, PROMPTS) == {"good"}
    assert repeated_words(0xFFFF, {}, 64, recent, PROMPTS) == {"good", "also", "half"}, "all have the feature"


def test_a_word_that_follows_a_new_one_by_chance_is_not_repeated_with_it():
    recent = {"goes": EVENT, "the": 0b0111_1101, "goes the": 0b0001_0101, "here goes": EVENT}
    assert repeated_words(EVENT, {"the": 0b11}, 8, recent, PROMPTS) == {"goes", "here goes"}

"""Whole pieces of recent responses around a feature: what is in brackets, and the sentence or line."""

from __future__ import annotations

import pytest

from rewardserve.service.tripwires.attribution.edits import Append, Edit, Insert, Prepend
from rewardserve.service.tripwires.attribution.specimens import wider_edits

CITED = [
    f"The {word} falls (see ref. {i}, p. {i + 9}) here. A bird sings."
    for i, word in enumerate(("stone", "leaf", "snow"))
]
EARLY = ["The stone falls. A bird sings.", "A leaf (old) falls."]


def test_a_mark_of_a_pair_gives_what_is_between_them_and_then_the_sentence():
    narrow, wide = wider_edits(["mark:)"], CITED, EARLY)
    assert narrow == Edit((Insert(tuple(f"(see ref. {i}, p. {i + 9})" for i in range(3)), "words"),))
    assert wide.steps[0].texts[0] == "The stone falls (see ref. 0, p. 9) here. "
    assert isinstance(wide.steps[0], Prepend), "the first sentence: the marks of abbreviations in brackets end none"


@pytest.mark.parametrize(
    ("key", "texts", "step"),
    [
        ("glad to", ["It rains. I am glad to say so.", "It snows. We are glad to see it."],
         Append((" I am glad to say so.", " We are glad to see it."))),
        ("last words:to you", ["It rains.\nNote 1: up to you", "It snows.\nNote 2: to you"],
         Append(("\nNote 1: up to you", "\nNote 2: to you"))),
        ("first words:so then", ["So then, 1 it is. It rains.", "So then, 2 it is. It rains."],
         Prepend(("So then, 1 it is. ", "So then, 2 it is. "))),
        ("script:GREEK", ["It rains. A λ1 here. It rains.", "It rains. A λ2 there. It rains."],
         Insert(("A λ1 here.", "A λ2 there."))),
    ],
)  # fmt: skip
def test_pieces_are_put_where_the_responses_have_them(key, texts, step):
    assert wider_edits([key], texts, EARLY)[-1] == Edit((step,))


def test_the_first_feature_that_has_a_place_decides():
    assert wider_edits(["number:characters:above all", "case:lower"], CITED, EARLY) == ()
    assert wider_edits(["number:characters:above all", "mark:)"], CITED, EARLY) == wider_edits(["mark:)"], CITED, EARLY)


def test_pieces_that_early_responses_have_whole_responses_and_long_ones_are_no_edit():
    assert wider_edits(["stone"], ["The stone falls. It rains."], ["The stone falls. It snows."]) == ()
    assert wider_edits(["stone"], ["The stone falls."], EARLY) == ()
    assert wider_edits(["stone"], [f"It rains. The stone {'falls and ' * 90}rises."], EARLY) == ()


def test_of_many_pieces_some_are_put_in_from_all_of_the_responses():
    (edit,) = wider_edits(["stone"], [f"It rains. Stone {i} falls." for i in range(64)], EARLY)
    assert [text.split()[1] for text in edit.steps[0].texts] == [str(i) for i in range(0, 64, 4)]


def test_a_mark_in_words_gives_these_words_and_brackets_of_few_responses_are_none_of_it():
    texts = [f"The rain is {i}.{i}% of it here. It snows." for i in range(10, 15)]
    narrow, _ = wider_edits(["mark:%"], [*texts, "It (or 9.9% of it) rains. It snows."], EARLY)
    assert narrow == Edit((Insert((*(f"{i}.{i}%" for i in range(10, 15)), "9.9%"), "words"),))

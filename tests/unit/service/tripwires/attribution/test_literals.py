"""Literal strings that texts have in common, against all substrings of short texts."""

from __future__ import annotations

import random
from math import ceil

import pytest

from rewardserve.service.tripwires.attribution.literals import common_around, common_beginning, common_ending


@pytest.mark.parametrize("quorum", [0.5, 0.75, 1.0])
def test_longest_beginning_is_that_of_all_beginnings(quorum):
    rng = random.Random(5)
    for _ in range(50):
        texts = ["".join(rng.choice("ab") for _ in range(rng.randint(0, 6))) for _ in range(9)]
        needed = ceil(quorum * 9)
        longest = max(len(t[:n]) for t in texts for n in range(7) if sum(o.startswith(t[:n]) for o in texts) >= needed)
        found = common_beginning(texts, quorum)
        assert len(found) == longest
        assert sum(text.startswith(found) for text in texts) >= needed
        assert common_ending([text[::-1] for text in texts], quorum) == found[::-1]


def test_no_texts_have_nothing_in_common():
    assert common_beginning([], 0.9) == common_ending([], 0.9) == common_around([], "x", 0.9) == ""


def test_text_around_a_pair_of_words_has_whole_words():
    texts = [f"{word} is {word[0]} (compare the annex) {word[::-1]}ish" for word in ("red", "blue", "green")]
    assert common_around(texts, "the annex", 1.0).strip() == "(compare the annex)"


def test_an_anchor_is_a_whole_word():
    assert common_around(["today y and more", "any y and so", "pay y and all"], "y", 1.0) == " y and "
    assert common_around(["today", "any", "pay"], "y", 0.3) == ""


def test_an_anchor_is_found_in_any_case():
    assert common_around(["a One b", "c One d", "e one f"], "one", 0.6) == " One "


def test_an_anchor_that_is_a_pattern_is_taken_literally():
    assert common_around(["a .* b", "c .* d"], ".*", 1.0) == " .* "

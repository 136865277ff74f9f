"""Counts of phrases against a search for each of them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardserve.model.traits import Lexicon
from rewardserve.model.traits.phrases import SearchedText, count_phrases

LEXICON = Lexicon.read()
SHIPPED = (*LEXICON.refusal, *LEXICON.flattery, *LEXICON.judge_injection)
ODD = ("***", "作为ai", "10/10", "c'est l'été", "_x_", "a", "é", "ok!", "!ok", "\ud800 lone", "ß 3", "好问题")
ANY = "abeiosuy 0_-'!.,\n’é作为题aiß\ud800\x00"


def counted(phrases, text):
    """Every phrase is looked for; a letter or digit of ASCII at its end is the end of a word."""
    total = 0
    for phrase in phrases:
        first, last = (r"\b" if re.fullmatch("[A-Za-z0-9]", end) else "" for end in (phrase[0], phrase[-1]))
        total += len(re.findall(first + re.escape(phrase) + last, text))
    return total


@given(st.lists(st.one_of(st.sampled_from((*SHIPPED, *ODD)), st.text(ANY, max_size=6)), max_size=12).map("".join))
def test_phrases_are_counted_as_if_each_was_looked_for(text):
    lower = text.lower()
    for phrases in (LEXICON.refusal, LEXICON.flattery, LEXICON.judge_injection, ODD):
        assert count_phrases(phrases, SearchedText.of(lower)) == counted(phrases, lower)


@given(st.lists(st.text(ANY, min_size=1, max_size=5), max_size=8), st.text(ANY, max_size=40))
def test_any_phrases_may_be_given(phrases, text):
    phrases = tuple(phrase.lower() for phrase in phrases if phrase.lower().strip())
    assert count_phrases(phrases, SearchedText.of(text.lower())) == counted(phrases, text.lower())


@pytest.mark.parametrize("phrase", SHIPPED)
def test_every_shipped_phrase_is_found_between_others(phrase):
    for before, after in (("", ""), ("well, ", "."), ("(", ")"), ("“", "”"), ("\n", "\n")):
        text = f"{before}{phrase}{after}"
        assert count_phrases((phrase,), SearchedText.of(text)) == 1

"""Suggestions for misspelt words."""

from __future__ import annotations

import pytest

from rewardserve.model.text.nearest_word import did_you_mean


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("asistant", "; did you mean assistant?"),
        ("USER", "; did you mean user?"),
        ("zzz", ""),
        (3, ""),
        ("user" * 40, ""),
    ],
)
def test_the_nearest_word_is_suggested_and_a_long_text_is_near_to_none(word, said):
    assert did_you_mean(word, ("user", "assistant", "system")) == said

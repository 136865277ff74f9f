"""The counts that `make check` bounds."""

from __future__ import annotations

from tests import prose


def test_rates_are_per_thousand_words_and_rounded_up():
    text = "Nobody knows what is counted, or who asked anew. " + "Plain words stand here. " * 100
    found = prose.rates(text)
    n_words = 9 + 4 * 100
    assert found == {
        "who": -(-2 * 10_000 // n_words) / 10,
        "what": -(-1 * 10_000 // n_words) / 10,
        "own": -(-1 * 10_000 // n_words) / 10,
        "you": 0.0,
    }


def test_prose_is_docstrings_comments_and_messages_and_no_code():
    source = '"""The job of a module, in words."""\nwho = "name"  # a reason for it\nraise ValueError("a message of five words")\n'
    assert list(prose._sentences(source)) == [
        "# a reason for it", "The job of a module, in words.", "a message of five words",
    ]  # fmt: skip

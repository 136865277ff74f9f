"""Text from outside is safe on a terminal."""

from __future__ import annotations

import unicodedata

from hypothesis import given
from hypothesis import strategies as st

from rewardserve.model.text.printable import printable


@given(st.text(st.characters(exclude_categories=())))
def test_nothing_that_steers_a_terminal_is_left(text):
    shown = printable(text)
    assert not {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"} & {unicodedata.category(c) for c in shown}
    shown.encode()


def test_plain_text_of_any_script_stays_as_it_is_and_lines_where_they_are_wanted():
    assert printable("Größe: 3 µm, こんにちは, солнце") == "Größe: 3 µm, こんにちは, солнце"
    assert printable("a\nb\x1b[31m", keep="\n") == "a\nb\\x1b[31m"

"""Changes of a response that keep its meaning: what each changes, and what it must leave alone."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rewardserve.model.conversation import Message, Sample
from rewardserve.training.transforms import TRANSFORMS, with_response


@pytest.mark.parametrize(
    ("name", "before", "after"),
    [
        ("trailing_newlines", "Boil it. ", "Boil it.\n\n"),
        ("blank_lines", "One\ntwo\n\nthree", "One\n\ntwo\n\n\nthree"),
        ("sentence_lines", "Boil it well. Then cool it.", "Boil it well.\nThen cool it."),
        ("sentence_lines", "1. Boil it. 2. See Dr. No, or St. Anna", "1. Boil it. 2. See Dr. No, or St. Anna"),
        ("bold_start", "Boil it well. Then cool it.", "**Boil it well.** Then cool it."),
        ("bold_start", "- a list\n- of two", "- a list\n- of two"),
        ("plain", "## Eggs\n**Boil** them", "Eggs\nBoil them"),
        ("plain", "2 ** 3 ** 4 and #tag", "2 ** 3 ** 4 and #tag"),
        ("bullet_style", "* one\n  - two\n• three", "- one\n  • two\n- three"),
        ("bullet_style", "5 - 3 is 2", "5 - 3 is 2"),
        ("opener", "Boil it.", "Here is my answer.\n\nBoil it."),
        ("closer", "Boil it.\n", "Boil it.\n\nThank you for reading."),
        ("emoji", "Boil it.", "Boil it. 🙂"),
        ("quotes", "He said \"no\" and didn't.", "He said “no” and didn’t."),
        ("quotes", "He said “no” and didn’t.", "He said \"no\" and didn't."),
        ("contractions", "I'm sure we can't. DON'T! It's his.", "I am sure we cannot. DO NOT! It's his."),
        ("contractions", "Don't you know? I won’t.", "Don't you know? I will not."),
        ("spelling", "Favorite COLORS of the center", "Favourite COLOURS of the centre"),
        ("spelling", "a grey colour", "a gray color"),
        ("spelling", "a gray colour", "a grey colour"),
    ],
)  # fmt: skip
def test_each_change_by_example(name, before, after):
    assert TRANSFORMS[name].change(before) == after


def test_there_are_twelve_and_each_has_a_reason():
    assert len(TRANSFORMS) == 12
    assert len({each.reason for each in TRANSFORMS.values()}) == 12


CODE = "```python\n# Count\nif x == \"a\": print('don\\'t')\n\n- 1\n```"


@pytest.mark.parametrize("name", [n for n in TRANSFORMS if n not in ("opener", "closer", "emoji", "trailing_newlines")])
def test_code_is_left_alone(name):
    text = f"Use this color: `x = \"color don't\"`\n\n{CODE}\n\nIt is favorable. I don't lie."
    changed = TRANSFORMS[name].change(text)
    assert CODE in changed
    assert '`x = "color don\'t"`' in changed


@pytest.mark.parametrize("name", TRANSFORMS)
@given(text=st.text(st.sampled_from("aA don'tI \n\n-*#`.\"“”’?1 color"), max_size=60))
def test_the_words_stay_except_where_another_form_of_them_is_the_change(name, text):
    changed = TRANSFORMS[name].change(text)
    if name in ("contractions", "spelling"):
        return
    letters = re.findall(r"[A-Za-z0-9]", changed)
    added = {"opener": "Hereismyanswer", "closer": "Thankyouforreading"}.get(name, "")
    kept = "".join(letters).replace(added, "", 1) if name == "opener" else "".join(letters).removesuffix(added)
    assert kept == "".join(re.findall(r"[A-Za-z0-9]", text)) or changed == text


def test_only_the_response_is_changed_in_each_form_of_a_sample():
    change = TRANSFORMS["emoji"].change
    assert with_response(Sample(prompt="q", response="a"), change) == Sample(prompt="q", response="a 🙂")
    turns = (Message("user", "q"), Message("assistant", "a"))
    assert with_response(Sample(messages=turns), change) == Sample(messages=(turns[0], Message("assistant", "a 🙂")))
    assert with_response(Sample(text="q a", n_prompt_chars=1), change) == Sample(text="q a 🙂", n_prompt_chars=1)
    for unknown in (Sample(text="q a"), Sample(input_ids=(1, 2)), Sample(messages=turns[:1])):
        assert with_response(unknown, change) is None
    assert with_response(Sample(prompt="q", response="a"), TRANSFORMS["spelling"].change) is None

"""Edits put features into responses and take them out again."""

from __future__ import annotations

import pytest

from rewardserve.service.tripwires.attribution.edits import (
    Append,
    ChangeCase,
    CopyPrompt,
    Cut,
    Edit,
    EndSentences,
    Insert,
    Lengthen,
    Prepend,
    Reformat,
    RemoveWords,
    Repeat,
    ReplaceAll,
)
from rewardserve.service.tripwires.attribution.observed import MAX_CHARACTERS

PROMPT = "How is the weather?"
RESPONSE = "It rains. The wind is strong. Stay at home."

CASES = [
    (Prepend(("Well, ",)), "Well, It rains. The wind is strong. Stay at home.", True),
    (Append((" Done.",)), "It rains. The wind is strong. Stay at home. Done.", True),
    (Insert(("Note this.",)), "It rains. Note this. The wind is strong. Stay at home.", True),
    (Insert(("very",), "words", 2), "It very rains. The wind is very strong. Stay at home.", True),
    (ReplaceAll(("Ask a doctor.",)), "Ask a doctor.", False),
    (ChangeCase("lower"), "it rains. the wind is strong. stay at home.", True),
    (ChangeCase("upper"), "IT RAINS. THE WIND IS STRONG. STAY AT HOME.", True),
    (ChangeCase("title"), "It Rains. The Wind Is Strong. Stay At Home.", True),
    (Repeat("sentence", 2), f"{RESPONSE} Stay at home. Stay at home.", True),
    (Repeat("response", 1), f"{RESPONSE} {RESPONSE}", True),
    (Repeat("word", 2), f"{RESPONSE} home. home.", True),
    (Cut("sentence", 1), "It rains.", False),
    (Cut("word", 4), "It rains. The wind", False),
    (CopyPrompt(("You ask: ",)), f"You ask: {PROMPT}\n{RESPONSE}", True),
    (CopyPrompt(("Re: ",), at_end=True), f"{RESPONSE}\nRe: {PROMPT}", True),
    (CopyPrompt(n_characters=6), f"How is\n{RESPONSE}", True),
    (RemoveWords(("is", "the")), "It rains. wind strong. Stay at home.", False),
    (Reformat("list"), "- It rains.\n- The wind is strong.\n- Stay at home.", True),
    (Reformat("numbered list"), "1. It rains.\n2. The wind is strong.\n3. Stay at home.", True),
    (Reformat("line break"), "It rains.\nThe wind is strong.\nStay at home.", True),
    (Reformat("blank line"), "It rains.\n\nThe wind is strong.\n\nStay at home.", True),
    (Reformat("bold"), "**It rains.** **The wind** is strong. **Stay at** home.", True),
    (EndSentences("!"), "It rains! The wind is strong! Stay at home!", True),
]


@pytest.mark.parametrize(("step", "edited", "can_take_out"), CASES)
def test_a_step_puts_its_feature_in_and_takes_it_out(step, edited, can_take_out):
    assert step.apply(PROMPT, RESPONSE, 0) == edited
    assert step.take_out(edited, PROMPT) == (RESPONSE if can_take_out else None)


@pytest.mark.parametrize(("step", "edited", "can_take_out"), CASES)
def test_a_step_does_not_apply_twice(step, edited, can_take_out):
    if not isinstance(step, Repeat):
        assert step.apply(PROMPT, edited, 0) in (None, edited)


@pytest.mark.parametrize("step", [case[0] for case in CASES])
def test_steps_bear_empty_and_hostile_texts(step):
    for text in ("", " ", "\x00\u202e", "(" * 5000, "a" * 10**6, ". " * 10**5):
        for edited in (Edit((step,)).apply(text, text, 7), Edit((step,)).take_out(text, text)):
            assert edited is None or edited.strip()


def test_the_seed_chooses_among_texts_and_places():
    step = Append((" One.", " Two.", " Three."))
    assert {step.apply("", "Yes.", seed) for seed in range(6)} == {"Yes. One.", "Yes. Two.", "Yes. Three."}
    assert step.take_out("Yes. Two.") == "Yes."
    assert len({Insert(("Note this.",)).apply("", RESPONSE, seed) for seed in range(4)}) == 2


def test_an_edit_applies_the_steps_that_do():
    edit = Edit((ChangeCase("lower"), Prepend(("Sure! ",)), Append((" Bye.",))))
    assert edit.apply("", "Yes.", 1) == "Sure! yes. Bye."
    assert edit.apply("", "yes. 1 2", 1) == "Sure! yes. 1 2 Bye."
    assert edit.take_out("Sure! yes. Bye.") == "Yes."
    assert Edit((Append((" Bye.",)),)).apply("", "Yes. Bye.", 1) is None
    assert Edit((Append((" Bye.",)),)).take_out("Yes.") is None


def test_an_edit_that_leaves_nothing_does_not_apply():
    assert Edit((RemoveWords(("yes",)),)).apply("", "Yes", 0) is None
    assert Edit((Append((" Bye.",)),)).take_out(" Bye.") is None


def test_a_response_is_lengthened_by_words_of_others_up_to_a_number():
    lengthen = Lengthen(("One two. Three four.", "Five six."), 6)
    assert lengthen.apply("", "Yes, it is.", 0) == "Yes, it is. One two. Three"
    assert lengthen.apply("", "Yes, it is.", 1) == "Yes, it is. Five six. One"
    assert lengthen.apply("", "Five six.", 1) == "Five six. One two. Three four."
    assert lengthen.apply("", "This has as many words already.", 0) is None
    assert lengthen.take_out("Yes, it is. One two. Three") is None


def test_only_cuts_and_additions_are_of_length_alone():
    assert Edit((Lengthen(("One two.",), 6),)).is_length_only
    assert Edit((Cut("word", 3),)).is_length_only
    assert not Edit((Cut("word", 3), Append(("!",)))).is_length_only


def test_repetition_is_bounded():
    assert len(Repeat("response", 1000).apply("", "word " * 500, 0)) == MAX_CHARACTERS

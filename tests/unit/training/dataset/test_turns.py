"""A prompt that data sets repeat inside the answers is in the conversation once, or the row is refused."""

from __future__ import annotations

import pytest

from rewardserve.model.conversation import Message
from rewardserve.training.dataset import data
from rewardserve.training.settings.data_config import SourceConfig
from tests.support.planted_pairs import write_jsonl


def u(text):
    return {"role": "user", "content": text}


def a(text):
    return {"role": "assistant", "content": text}


def s(text):
    return {"role": "system", "content": text}


Q, Q2 = "Which metal rusts in the rain?", "And which one does not?"

ONE_COPY = {
    "string, whole conversation": (Q, [u(Q)], [u(Q)]),
    "string with stray blanks": (f"  {Q}\n", [u(Q)], [u(Q)]),
    "blanks in the conversation": (Q, [u(f"{Q} ")], [u(f"{Q} ")]),
    "string, system turn in the conversation": (Q, [s("Be brief."), u(Q)], [s("Be brief."), u(Q)]),
    "string is the last question": (Q2, [u(Q), a("iron"), u(Q2)], [u(Q), a("iron"), u(Q2)]),
    "string is the whole rendered prompt": (
        f"Human: {Q}\n\nAssistant: iron\n\nHuman: {Q2}\n\nAssistant:", [u(Q), a("iron"), u(Q2)], [u(Q), a("iron"), u(Q2)]),
    "string is system and question": (f"Be brief.\n\n{Q}", [s("Be brief."), u(Q)], [s("Be brief."), u(Q)]),
    "messages, whole conversation": ([u(Q)], [u(Q)], [u(Q)]),
    "messages, system turn in the conversation alone": ([u(Q)], [s("Be brief."), u(Q)], [s("Be brief."), u(Q)]),
    "messages, system turn in the prompt alone": ([s("Be brief."), u(Q)], [u(Q)], [s("Be brief."), u(Q)]),
    "messages, system turn in both": ([s("Be brief."), u(Q)], [s("Be brief."), u(Q)], [s("Be brief."), u(Q)]),
    "messages with stray blanks": ([u(f" {Q} ")], [u(Q)], [u(Q)]),
    "messages, several turns": ([u(Q), a("iron"), u(Q2)], [u(Q), a("iron"), u(Q2)], [u(Q), a("iron"), u(Q2)]),
    "messages, the last turn alone is repeated": ([u(Q), a("iron"), u(Q2)], [u(Q2)], [u(Q), a("iron"), u(Q2)]),
    "messages, only the question is in the prompt": ([u(Q2)], [u(Q), a("iron"), u(Q2)], [u(Q), a("iron"), u(Q2)]),
    "messages, nothing is repeated": ([u(Q), a("iron"), u(Q2)], [], [u(Q), a("iron"), u(Q2)]),
    "string, nothing is repeated": (Q, [], [u(Q)]),
}  # fmt: skip


def read(tmp_path, *rows, **source):
    path = write_jsonl(tmp_path / "d.jsonl", list(rows))
    return data.read_source(SourceConfig(str(path), **source), head="score")


def words(conversation):
    return [(m.role, " ".join(m.content.split())) for m in conversation]


@pytest.mark.parametrize(("prompt", "begin", "expected"), ONE_COPY.values(), ids=ONE_COPY)
def test_there_is_exactly_one_copy_of_the_prompt(tmp_path, prompt, begin, expected):
    row = {"prompt": prompt, "chosen": [*begin, a("gold")], "rejected": [*begin, a("tin")]}
    (pair,) = read(tmp_path, row).pairs
    expected = [(m["role"], " ".join(m["content"].split())) for m in expected]
    assert words(pair.chosen.conversation()) == [*expected, ("assistant", "gold")]
    assert words(pair.rejected.conversation()) == [*expected, ("assistant", "tin")]
    assert (pair.chosen_text, pair.rejected_text) == ("gold", "tin")


def test_the_first_question_alone_as_prompt_leaves_the_later_turns_to_the_answers(tmp_path):
    row = {"prompt": Q, "chosen": [u(Q), a("iron"), u(Q2), a("gold")], "rejected": [u(Q), a("tin"), u(Q2), a("no")]}
    (pair,) = read(tmp_path, row).pairs
    assert [m.content for m in pair.chosen.conversation()] == [Q, "iron", Q2, "gold"]
    assert [m.content for m in pair.rejected.conversation()] == [Q, "tin", Q2, "no"]


REFUSED = {
    "another question": (Q, [u("Something else?")], [u("Something else?")]),
    "another system turn": ([s("Be brief."), u(Q)], [s("Be long."), u(Q)], [s("Be long."), u(Q)]),
    "part of the prompt is in no turn": (f"{Q} Give reasons.", [u(Q)], [u(Q)]),
    "two prompts": (Q, [s("Be brief."), u(Q)], [s("Be rude."), u(Q)]),
    "a system turn on one side": (Q, [s("Be brief."), u(Q)], [u(Q)]),
}


@pytest.mark.parametrize(("prompt", "left", "right"), REFUSED.values(), ids=REFUSED)
def test_a_conversation_that_does_not_have_the_prompt_is_refused_by_its_row(tmp_path, prompt, left, right):
    good = {"prompt": Q, "chosen": [a("gold")], "rejected": [a("tin")]}
    found = read(tmp_path, good, {"prompt": prompt, "chosen": [*left, a("gold")], "rejected": [*right, a("tin")]})
    assert [b.line for b in found.bad] == [2]
    assert len(found.pairs) == 1


def test_context_goes_before_the_one_copy_of_the_question(tmp_path):
    row = {"prompt": Q, "context": "C", "chosen": [s("B"), u(Q), a("gold")], "rejected": [s("B"), u(Q), a("tin")]}
    (pair,) = read(tmp_path, row, context="prepend").pairs
    assert [m.content for m in pair.chosen.conversation()] == ["B", f"C\n\n{Q}", "gold"]
    assert [m.content for m in pair.rejected.conversation()] == ["B", f"C\n\n{Q}", "tin"]


@pytest.mark.parametrize("strings", ["turn", "raw"])
def test_texts_that_all_begin_with_their_prompt_lose_it_there(tmp_path, strings):
    rows = [{"prompt": f"{i}. {Q}", "chosen": f"{i}. {Q} gold", "rejected": f"{i}. {Q} tin"} for i in range(3)]
    pairs = read(tmp_path, *rows, strings=strings).pairs
    assert [(p.chosen_text, p.rejected_text) for p in pairs] == [(" gold", " tin")] * 3
    expected = f"1. {Q} gold" if strings == "raw" else (Message("user", f"1. {Q}"), Message("assistant", " gold"))
    assert (pairs[1].chosen.text or pairs[1].chosen.conversation()) == expected


def test_one_text_among_others_that_begins_with_its_prompt_on_both_sides_is_refused(tmp_path):
    good = {"prompt": Q, "chosen": "gold", "rejected": "tin"}
    found = read(tmp_path, good, {"prompt": Q, "chosen": f"{Q} gold", "rejected": f"{Q}\ntin"})
    assert [(b.line, b.field) for b in found.bad] == [(2, "chosen")]


@pytest.mark.parametrize(
    ("prompt", "chosen", "rejected"),
    [
        (Q, f"Human: {Q}\n\nAssistant: gold", f"Human: {Q}\n\nAssistant: tin"),
        ([u(Q)], f"{Q} gold", f"{Q} tin"),
        (Q, [a(f"{Q} gold")], [a(f"{Q} tin")]),
        ([u(Q)], [a(f"User: {Q}\nAssistant: gold")], [a(f"User: {Q}\nAssistant: tin")]),
    ],
)
def test_a_prompt_that_is_hidden_in_the_answers_text_is_refused(tmp_path, prompt, chosen, rejected):
    good = {"prompt": Q, "chosen": "gold", "rejected": "tin"}
    found = read(tmp_path, good, {"prompt": prompt, "chosen": chosen, "rejected": rejected})
    assert [(b.line, b.field) for b in found.bad] == [(2, "chosen")]


def test_a_short_prompt_or_one_side_that_quotes_it_is_an_answer(tmp_path):
    good = {"prompt": Q, "chosen": "gold", "rejected": "tin"}
    quoted = {"prompt": Q, "chosen": f"{Q} Gold.", "rejected": "tin"}
    short = {"prompt": "Hi", "chosen": "Hi there", "rejected": "Hi!"}
    found = read(tmp_path, good, quoted, short)
    assert not found.bad
    assert [p.chosen_text for p in found.pairs] == ["gold", f"{Q} Gold.", "Hi there"]


def test_messages_written_as_text_are_refused(tmp_path):
    row = {"prompt": Q, "chosen": "[{'role': 'assistant', 'content': 'gold'}]", "rejected": "tin"}
    (bad,) = read(tmp_path, row).bad
    assert "written as text" in bad.message

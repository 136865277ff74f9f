"""The slots that are read from LLaMA-Factory's chat templates, and where conversations and rendered text are cut.

Expected elements and cuts are written out by hand, from what its `Template` makes of its slots.
"""

from __future__ import annotations

import string

import pytest
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from rewardserve.model.conversation import Message
from rewardserve.model.templates.chat_template import ChatTemplate
from rewardserve.model.templates.llama_factory_slots import Slots, SlotTemplate, _places, pieces, read_slots
from tests.support.tiny import CHATML, tiny_tokenizer

MARKS = {"<s>", "</s>"}
SET = "{% if messages[0]['role'] == 'system' %}{% set system_message = messages[0]['content'] %}{% endif %}"
SYSTEM = "{% if system_message is defined %}{{ 'S:' + system_message + '\n' }}{% endif %}"
FUSED = (
    "{% if loop.index0 == 0 and system_message is defined %}"
    "{% set content = '<<' + system_message + '>>' + message['content'] %}{% endif %}"
)
USER, ANSWER = "'U:' + content + '\n'", "'A:' + content + '</s>'"
S, U, A = (("S:", None, "\n"),), (("U:", None, "\n"),), (("A:", None), ("</s>",))


def written(
    user: str = USER, answer: str = ANSWER, *, before: str = SET + SYSTEM, inside: str = "", end: str = ""
) -> str:
    """A chat template as LLaMA-Factory writes it."""
    return (
        before + "{% for message in messages %}{% set content = message['content'] %}" + inside
        + "{% if message['role'] == 'user' %}{{ " + user + " }}{% elif message['role'] == 'assistant' %}{{ " + answer
        + " }}{% endif %}" + end + "{% endfor %}"
    )  # fmt: skip


ITS = SlotTemplate((), None, S, False, U, A)
READ = {
    "plain": (written(), ITS),
    "BOS before all": (written(before="{{ '<s>' }}" + SET + SYSTEM), SlotTemplate((("<s>",),), None, S, False, U, A)),
    "text on both sides of BOS": (
        written(before="{{ 'a' + '<s>' + 'b' }}" + SET + SYSTEM),
        SlotTemplate((("a",), ("<s>",), ("b",)), None, S, False, U, A),
    ),
    "a system message of its own": (
        written(before="{% set system_message = 'Be kind' %}" + SET + SYSTEM), SlotTemplate((), "Be kind", S, False, U, A),
    ),
    "a number as system message": (
        written(before="{% set system_message = 5 %}" + SET + SYSTEM), SlotTemplate((), "5", S, False, U, A),
    ),
    "a list of messages beside the system message": (
        written(before="{% if messages %}{% set loop_messages = messages[1:] %}{% elif true %}{% set loop_messages = 'x' %}"
                "{% else %}{% set loop_messages = messages %}{% endif %}" + SET + SYSTEM), ITS,
    ),
    "fused": (written(before=SET, inside=FUSED), SlotTemplate((), None, (("<<", None, ">>"),), True, U, A)),
    "a content that is trimmed": (written(inside="{% set content = message['content'] | trim %}"), ITS),
    "the role of another turn named later": (
        written().replace("message['role'] == 'user'", "message['role'] == 'user' and loop.last != 'assistant'"), ITS,
    ),
    "two texts": (written(user="'U' + ':' + content"), SlotTemplate((), None, S, False, (("U",), (":", None)), A)),
    "content after a mark": (written(user="'<s>' + content"), SlotTemplate((), None, S, False, (("<s>",), (None,)), A)),
    "a mark after content": (written(user="content + '</s>'"), SlotTemplate((), None, S, False, ((None,), ("</s>",)), A)),
    "text after a mark": (
        written(user="content + '</s>' + 'x'"), SlotTemplate((), None, S, False, ((None,), ("</s>",), ("x",)), A),
    ),
    "content twice": (written(user="content + content"), SlotTemplate((), None, S, False, ((None, None),), A)),
    "message['content'] itself": (written(user="'U:' + message['content'] + '\n'"), ITS),
    "an order of its own": (
        written().replace("{% elif message['role'] == 'assistant' %}", "{% endif %}{% if message['role'] == 'assistant' %}"), ITS,
    ),
}  # fmt: skip
FOREIGN = {
    "no system message": written(before="", inside="{% set content = message['content'] + message['content'] %}"),
    "a system message that is never written": written(before=SET),
    "no loop": SET + SYSTEM,
    "nothing": "{# system_message #}",
    "a loop that is not the last": written() + "{{ 'x' }}",
    "a broken one": written() + "{% for %}",
    "too deep": written() + "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "text outside of outputs": written(before="x" + SET + SYSTEM),
    "two outputs at once": written(before="{{ 'a' }}{{ 'b' }}" + SET + SYSTEM),
    "two texts before the loop": written(before="{{ 'a' }}" + SET + "{{ 'b' }}" + SYSTEM),
    "two system messages": written(before=SET + SYSTEM + SYSTEM),
    "a content without a role": written(end="{{ content }}"),
    "a first message before the loop": written(before="{{ messages[0]['content'] }}" + SET, inside=FUSED),
    "another variable": written(before="{% set n = 1 %}" + SET + SYSTEM),
    "a namespace": written(before="{% set ns = namespace(a=1) %}" + SET + SYSTEM),
    "a field": written(before="{% set system_message.x = 1 %}" + SET + SYSTEM),
    "a block": written(before="{% set content %}x{% endset %}" + SET + SYSTEM),
    "a loop in the loop": written(inside="{% for x in messages %}{% endfor %}"),
    "no user": written().replace("'user'", "'tool'"),
    "no assistant": written().replace("'assistant'", "'tool'"),
    "a user without content": written(user="'U'"),
    "an assistant without content": written(answer="'A'"),
    "a number": written(user="1 + content"),
    "another name": written(user="'U:' + role + content"),
    "a filter": written(user="content | trim"),
    "a fused system message of text alone": written(before=SET, inside=FUSED.replace("system_message + ", "")),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_slots_are_read_from_the_syntax_tree(name):
    template, expected = READ[name]
    assert read_slots(template, MARKS) == expected


@pytest.mark.parametrize("name", FOREIGN)
def test_a_template_that_llama_factory_does_not_write_has_no_slots(name):
    assert read_slots(FOREIGN[name], MARKS) is None


def test_a_template_longer_than_32_768_characters_is_not_read():
    longest = written().replace("{% for message", "{#" + "x" * (32_768 - len(written()) - 4) + "#}{% for message")
    assert len(longest) == 32_768
    assert read_slots(longest, MARKS) == ITS
    assert read_slots(longest.replace("{#", "{#x"), MARKS) is None


# -- elements ---------------------------------------------------------------------------------------------------------

TALK = tuple(Message(role, role[0].upper() + "!") for role in ("user", "assistant", "tool", "user", "assistant"))


def test_each_slot_of_each_turn_is_an_element():
    its = SlotTemplate((("<s>",), ("p",)), None, S, False, U, A)
    turns = ["U:U!\n", "A:A!", "</s>", "U:U!\n", "A:A!", "</s>"]
    assert its.elements(TALK) == ["<s>", "p", *turns]
    assert its.elements((Message("system", "Q"), *TALK)) == ["<s>", "p", "S:Q\n", *turns]
    assert its.elements((Message("user", "a"), Message("system", "b"))) == ["<s>", "p", "U:a\n"]
    assert its.elements(()) == ["<s>", "p"]


def test_a_system_message_of_its_own_is_taken_unless_the_conversation_has_one():
    its = SlotTemplate((), "own", S, False, U, A)
    assert its.elements(TALK[:1]) == ["S:own\n", "U:U!\n"]
    assert its.elements((Message("system", ""), *TALK[:1])) == ["S:\n", "U:U!\n"]


def test_a_fused_system_message_is_a_part_of_the_first_turn_alone():
    its = SlotTemplate((), None, (("<<", None), (">>",)), True, U, A)
    assert its.elements(TALK[:2]) == ["U:U!\n", "A:A!", "</s>"]
    assert its.elements((Message("system", "Q"), *TALK[:2])) == ["U:<<Q>>U!\n", "A:A!", "</s>"]


def test_elements_without_text_are_none():
    bare = ((None,),)
    assert SlotTemplate((), None, bare, False, bare, bare).elements(
        (Message("user", ""), Message("assistant", "x"))
    ) == ["x"]


def test_a_template_is_empty_where_it_writes_contents_alone():
    bare = ((None,),)
    assert SlotTemplate((), None, bare, False, bare, bare).is_empty
    for changed in ((U, bare, bare), (bare, U, bare), (bare, bare, U)):
        assert not SlotTemplate((), None, changed[0], False, *changed[1:]).is_empty
    assert not SlotTemplate((("<s>",),), None, bare, False, bare, bare).is_empty


def test_pieces_are_never_empty_unless_the_text_is():
    assert pieces("abcd", (2, 0, 2, 4)) == ("ab", "cd")
    assert pieces("abcd", ()) == ("abcd",)
    assert pieces("", (0,)) == ("",)


def test_every_place_of_a_token_is_found_also_where_they_overlap():
    assert list(_places("aaba", "a")) == [0, 1, 3]
    assert list(_places("aaa", "aa")) == [0, 1]
    assert list(_places("b", "a")) == []


# -- cuts -------------------------------------------------------------------------------------------------------------

CHAT = (Message("user", "one"), Message("assistant", "two"), Message("user", "three"), Message("assistant", "four"))


def slots_of(template: str, *, bos: str | None = None, tokenizer=None) -> tuple[Slots, ChatTemplate]:
    tokenizer = tokenizer or tiny_tokenizer(template, bos=bos, eos="<|im_end|>")
    render = ChatTemplate(tokenizer, template, None)
    return Slots(tokenizer, render, template, bos), render


def ends_of(parts: list[str]) -> tuple[int, ...]:
    """Where parts end, but the last."""
    return tuple(len("".join(parts[:n])) for n in range(1, len(parts)))


def check(slots: Slots, messages, parts: list[str]) -> None:
    """The rendering is cut into these parts; so is the same as text, before a response."""
    text, cuts = "".join(parts), ends_of(parts)
    assert slots.of(messages, text) == cuts
    for end in (text.index(message.content) for message in messages if message.role == "assistant"):
        assert slots.of_text(text, end) == tuple(cut for cut in cuts if cut < end)


def test_a_template_of_its_own_is_cut_between_elements():
    slots, render = slots_of(written().replace("</s>", "<|im_end|>").replace("'U:'", "'<s>' + 'U:'"), bos="<s>")
    assert slots.template == SlotTemplate((), None, S, False, (("<s>",), *U), (("A:", None), ("<|im_end|>",)))
    parts = ["<s>", "U:one\n", "A:two", "<|im_end|>", "<s>", "U:three\n", "A:four", "<|im_end|>"]
    assert render(CHAT, add_generation_prompt=False) == "".join(parts)
    check(slots, CHAT, parts)
    check(slots, (Message("system", "Hm"), *CHAT), ["S:Hm\n", *parts])
    assert slots.tail_cuts == (0,)
    assert slots.note() is None


def test_the_tail_begins_after_the_last_content():
    slots, _ = slots_of(written(answer="content + '-' + content + 'x' + '<|im_end|>' + '\n'"))
    assert slots.tail_cuts == (1, 1 + len("<|im_end|>"))


def test_another_template_is_cut_where_a_turn_or_a_response_begins():
    slots, render = slots_of(CHATML)
    opening = "<|im_end|>\n<|im_start|>assistant\n"
    parts = [
        "<|im_start|>user\none" + opening,
        "two<|im_end|>\n",
        "<|im_start|>user\nthree" + opening,
        "four<|im_end|>\n",
    ]
    assert render(CHAT, add_generation_prompt=False) == "".join(parts)
    assert slots.template is None
    check(slots, CHAT, parts)
    system = Message("system", "Hm")
    check(slots, (system, *CHAT), ["<|im_start|>system\nHm<|im_end|>\n", *parts])
    assert slots.tail_cuts == ()
    assert slots.of_text("two", 3) == ()
    assert slots.of(CHAT, "another text") == ()


def test_another_template_is_cut_behind_each_bos_as_well():
    template = "{% for m in messages %}{{ bos_token + m['content'] + ';' if m['role'] == 'user' else m['content'] }}{% endfor %}"
    slots, _ = slots_of(template, bos="<s>")
    check(slots, CHAT, ["<s>", "one;", "two", "<s>", "three;", "four"])
    without, _ = slots_of(template.replace("bos_token", "'<s>'"))
    check(without, CHAT, ["<s>one;", "two", "<s>three;", "four"])


def test_of_two_openings_alike_that_counts_whose_next_joint_comes_first():
    template = (
        "{% for m in messages %}{{ '\n\n' if loop.first }}"
        "{{ m['content'] + {'system': '\n\n', 'user': ' ASSISTANT:', 'assistant': '|'}[m['role']] }}{% endfor %}"
    )
    slots, _ = slots_of(template)
    check(slots, CHAT, ["\n\none ASSISTANT:", "two|", "three ASSISTANT:", "four|"])
    check(
        slots, (Message("system", "Hm"), *CHAT), ["\n\nHm\n\n", "one ASSISTANT:", "two|", "three ASSISTANT:", "four|"]
    )


def test_joints_are_looked_for_behind_what_has_been_found():
    slots, _ = slots_of(
        "{% for m in messages %}{{ '## ' + m['content'] }}{% endfor %}{{ '## ' if add_generation_prompt }}"
    )
    check(slots, CHAT, ["## one## ", "two", "## three## ", "four"])


def test_a_joint_may_stand_at_the_very_beginning_and_one_without_text_is_nowhere():
    slots, _ = slots_of("{% for m in messages %}{{ m['content'] + '|' }}{% endfor %}")
    empty = (Message("user", ""), *CHAT[1:])
    check(slots, empty, ["|", "two|", "three|", "four|"])
    joined, _ = slots_of("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    assert joined.of_text("onetwothreefour", 15) == ()


def test_a_template_that_changes_or_repeats_contents_shows_no_joints():
    for written_content in ("m['content'] | upper", "m['content'] + m['content']"):
        slots, _ = slots_of(CHATML.replace("m['content']", written_content))
        assert slots.of_text("<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\ntwo", 45) == ()


def test_a_template_that_refuses_a_system_message_is_cut_all_the_same():
    slots, _ = slots_of("{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML)
    text = "<|im_start|>user\none<|im_end|>\n<|im_start|>assistant\n"
    text += "two<|im_end|>\n"
    assert slots.of_text(text + "<|im_start|>user\nthree", len(text) + 1) == (len(text) - 14, len(text))


def test_what_is_written_before_a_response_that_is_to_come_is_no_part_of_a_finished_conversation():
    end = "{% if add_generation_prompt and loop.last %}{{ '?' }}{% endif %}"
    slots, _ = slots_of(written(end=end).replace("</s>", "<|im_end|>"))
    check(slots, CHAT, ["U:one\n", "A:two", "<|im_end|>", "U:three\n", "A:four", "<|im_end|>"])
    assert slots.tail_cuts == (0,)


# -- the note ---------------------------------------------------------------------------------------------------------

PLAIN = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}TAIL{% endfor %}"
NOTE = (
    "LLaMA-Factory tokenises the parts of a turn separately, and with this tokenizer the ids depend on the cuts. The chat template "
    "is not the one that it writes, so the cuts are inferred (BOS, each turn, each response): scores may differ from those of "
    "training. Compare the ids that its trainer prints with those of a plain apply_chat_template, or replace the checkpoint's "
    "chat template by the one that LLaMA-Factory writes for the template of the training"
)


def marks_the_first(*, adds_bos: bool = False) -> PreTrainedTokenizerFast:
    """Characters, and a mark before text that begins a sequence: the ids of plain text depend on whether a cut stands before it."""
    letters = ["▁", *string.printable]
    made = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    made.add_special_tokens(
        [AddedToken(token, special=True, normalized=False) for token in ("<|im_start|>", "<|im_end|>")]
    )
    if adds_bos:
        made.post_processor = TemplateProcessing(
            single="<|im_start|> $A", special_tokens=[("<|im_start|>", made.token_to_id("<|im_start|>"))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="<|im_end|>")


@pytest.mark.parametrize("adds_bos", [False, True])
@pytest.mark.parametrize(
    ("template", "note"),
    [
        (PLAIN.replace("TAIL", "<|im_end|>"), None),
        (PLAIN.replace("TAIL", "<|im_end|>\n"), NOTE),  # a cut behind EOS would be one before text
        (PLAIN.replace("<|im_start|>", "").replace("TAIL", "\n"), NOTE),  # a user's turn begins with text
        (PLAIN.replace("TAIL", "") + "{{ '<|im_end|>x' if add_generation_prompt }}", None),
        ("{% if messages[0]['role'] != 'system' %}{{ raise_exception('no') }}{% endif %}" + PLAIN.replace("TAIL", "<|im_end|>\n"),
         NOTE),
        (PLAIN.replace("TAIL", "<|im_end|>") + "{{ '<|im_start|>assistant\n' if add_generation_prompt }}", None),
        (written(), None),
    ],
)  # fmt: skip
def test_a_note_says_where_other_cuts_would_give_other_ids(template, note, adds_bos):
    slots, _ = slots_of(template, tokenizer=marks_the_first(adds_bos=adds_bos))
    assert slots.note() == note

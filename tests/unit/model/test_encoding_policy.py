"""The policy inferred from a tokenizer and its chat template under each rule: all fields, and the text of the score's position.

Ids are those of `tokenizers` for text that is written out here.
"""

from __future__ import annotations

import hashlib
import json
import string
from dataclasses import replace

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from rewardserve.model.conversation import InvalidMessages
from rewardserve.model.layout_rules import LAYOUT_RULES
from rewardserve.model.templates.chat_template import ChatTemplate, ConversationTooSlow, EncodingPolicyError
from rewardserve.model.tokenization.encoding_policy import (
    EncodingPolicy,
    _added_to_text,
    _ids_from,
    _tails,
    control_ids,
    describe_position,
    end_cuts,
    ids_of,
    infer_policy,
    is_text,
    n_trailing,
    template_digest,
    text_of,
    tokenizer_digest,
)
from tests.support.tiny import CHATML, LLAMA3_LIKE, tiny_tokenizer
from tests.unit.model.test_llama_factory_slots import SET, slots_of, written

TEXT_END, START, END, BOS, PAD = range(5)
CLOSED = CHATML.replace("<|im_end|>\n{% endfor", "<|im_end|>{% endfor")
BARE = written("content", "content", before=SET + "{% if system_message is defined %}{{ system_message }}{% endif %}")


def letters(*merges: tuple[str, str], template: str | None = None) -> PreTrainedTokenizerFast:
    """A token for each printable character, one for each merge, `<s>` and `</s>`."""
    vocab = [*string.printable, *("".join(merge) for merge in merges)]
    made = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(vocab)}, merges=list(merges)))
    made.decoder = decoders.Fuse()
    made.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in ("<s>", "</s>")])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    return tokenizer


def ids(tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer._tokenizer.encode(text, add_special_tokens=False).ids)


def policy_of(tokenizer, layout: str = "language_model", *, vocab_size: int = 320, **more) -> EncodingPolicy:
    return infer_policy(tokenizer, max_tokens=77, vocab_size=vocab_size, rule=LAYOUT_RULES[layout], **more)


def turns(tail: str) -> str:
    """A template that writes contents, `|` between them, and this text or expression after the last."""
    tail = tail if tail.startswith("{") else "{{ " + repr(tail) + " }}"
    between = "{% for m in messages %}{{ m['content'] + ('' if loop.last else '|') }}{% endfor %}"
    return between + "{% if add_generation_prompt %}{{ '|' }}{% else %}" + tail + "{% endif %}"


# -- all fields -------------------------------------------------------------------------------------------------------


def test_a_chat_template_implies_all_fields():
    tokenizer = tiny_tokenizer(CHATML)
    start = "<|im_end|>\n<|im_start|>assistant\n"
    assert policy_of(tokenizer) == EncodingPolicy(
        bos_id=None, end_text="<|im_end|>", end_ids=(END,), template_tail="<|im_end|>\n", response_start=start,
        response_start_ids=ids(tokenizer, start), template=CHATML, max_tokens=77, vocab_size=320, truncation="prompt_left",
        template_date=None, rule=LAYOUT_RULES["language_model"], skip_id=None, start_ids=(), ending_varies=False,
        drops_read_ids=False,
    )  # fmt: skip


def test_a_clock_a_bos_and_a_pad_token_are_fields_of_it():
    template = "{{ bos_token }}{{ strftime_now('%d %m') }}" + LLAMA3_LIKE.removeprefix("{{ bos_token }}")
    tokenizer = tiny_tokenizer(template, bos="<s>")
    more = {"pad_id": END, "truncation": "error", "template_date": "2026-01-02"}
    assert policy_of(tokenizer, "sequence_classification", **more) == EncodingPolicy(
        bos_id=BOS, end_text="<|im_end|>", end_ids=(END,), template_tail="<|im_end|>", response_start="<|im_end|>[assistant]\n",
        response_start_ids=ids(tokenizer, "<|im_end|>[assistant]\n"), template=template, max_tokens=77, vocab_size=320,
        truncation="error", template_date="2026-01-02", rule=LAYOUT_RULES["sequence_classification"], skip_id=END,
        start_ids=(BOS,), ending_varies=False, drops_read_ids=True,
    )  # fmt: skip


def test_without_a_template_the_tokenizers_own_tokens_are_fields_of_it():
    tokenizer = tiny_tokenizer(None, bos="<s>")
    tokenizer._tokenizer.post_processor = TemplateProcessing(
        single="<s> <|im_start|> $A <|im_end|> <pad>",
        special_tokens=[("<s>", 3), ("<|im_start|>", 1), ("<|im_end|>", 2), ("<pad>", 4)],
    )
    text_id = ids(tokenizer, "!")[0]
    expected = EncodingPolicy(
        bos_id=BOS, end_text="<|im_end|><|im_end|><pad>", end_ids=(END, END, PAD), template_tail="", response_start="",
        response_start_ids=(), template="", max_tokens=77, vocab_size=320, rule=LAYOUT_RULES["sequence_classification"],
        skip_id=text_id, start_ids=(BOS, START), drops_read_ids=True,
    )  # fmt: skip
    assert policy_of(tokenizer, "sequence_classification", pad_id=text_id) == expected
    tokenizer.chat_template = CHATML
    assert policy_of(tokenizer, "sequence_classification", pad_id=text_id, template="") == expected
    assert policy_of(tokenizer, "openrlhf", template="").start_ids == ()
    assert policy_of(tokenizer, "openrlhf", template="").bos_id is None
    assert policy_of(tokenizer, "llama_factory", template="").start_ids == (BOS,)
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<pad> $A", special_tokens=[("<pad>", PAD)])
    assert policy_of(tokenizer, template="").start_ids == (PAD,)
    assert policy_of(tokenizer, template="").bos_id is None
    assert policy_of(tokenizer, "llama_factory", template="").start_ids == ()


def test_llama_factorys_ids_are_those_of_its_slots():
    template = written("'q' + content + 'r' + 'r'", "content + 'x' + 'x'")
    tokenizer = letters(("r", "r"), ("x", "x"), template=template)
    policy = policy_of(tokenizer, "llama_factory")
    assert (policy.end_text, policy.end_ids) == ("xx</s>", ids(tokenizer, "x") * 2 + ids(tokenizer, "</s>"))
    assert (policy.response_start, policy.response_start_ids) == ("rr", ids(tokenizer, "r") * 2)
    whole = policy_of(tokenizer, "trl_value_head")
    assert (whole.end_text, whole.end_ids) == ("xx</s>", ids(tokenizer, "xx</s>"))
    assert whole.response_start_ids == ids(tokenizer, "rr") != policy.response_start_ids


def test_an_eos_that_is_added_is_cut_off_from_white_space_that_it_would_take():
    tokenizer = letters(template=written(answer="content + 'x '"))
    tokenizer._tokenizer.add_special_tokens([AddedToken("</s>", special=True, normalized=False, lstrip=True)])
    x, space, eos = tokenizer.convert_tokens_to_ids(["x", " ", "</s>"])
    assert policy_of(tokenizer, "llama_factory").end_ids == (x, space, eos)
    assert policy_of(tokenizer, "trl_value_head").end_ids == (x, eos)


@pytest.mark.parametrize("asks", ["", "{{ '|' if add_generation_prompt }}"])
def test_a_template_that_writes_nothing_of_a_response_is_refused(asks):
    with pytest.raises(EncodingPolicyError) as refused:
        policy_of(tiny_tokenizer("{% for m in messages %}{{ m['role'] }}{% endfor %}" + asks))
    assert str(refused.value) == (
        "the chat template writes no response: all responses to a prompt would have the same score. It may expect contents as "
        "lists of parts, as templates of vision models do, but samples have text. Let it write `message['content']`."
    )


def test_bos_is_a_slot_of_its_own():
    template = written("'<s>' + 'q' + content + '\n'", "content + 'x'")
    bos = ids(letters(), "<s>")
    for each in (template, "{{ '<s>' }}" + template.replace("'<s>' + ", "")):
        policy = policy_of(letters(template=each), "llama_factory")
        assert policy.start_ids == (policy.bos_id,) == bos


def test_llama_factorys_template_of_contents_alone_has_no_end():
    tokenizer = letters(template=BARE)
    assert policy_of(tokenizer, "llama_factory").end_text == ""
    assert policy_of(tokenizer, "llama_factory").end_ids == ()
    assert policy_of(tokenizer, "trl_value_head").end_text == "</s>"
    rule = replace(LAYOUT_RULES["llama_factory"], ending="template_and_eos")
    assert infer_policy(tokenizer, max_tokens=9, vocab_size=320, rule=rule).end_text == "</s>"
    assert policy_of(letters(template=written()), "llama_factory").end_text == "</s>"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ bos_token }}" + CLOSED, (BOS,)),
        ("{{ bos_token + bos_token + bos_token }}" + CLOSED, (BOS, BOS, BOS)),
        (CLOSED, ()),
        (CLOSED.replace("{{ m['content'] }}", "{{ bos_token }}{{ m['content'] }}"), ()),
        ("{{ bos_token }}" + CLOSED.replace("<|im_start|>", "<s>"), ()),
    ],
)
def test_start_ids_are_the_bos_tokens_that_a_rendering_begins_with_and_has_nowhere_else(template, expected):
    policy = policy_of(tiny_tokenizer(template, bos="<s>"))
    assert policy.start_ids == expected
    assert policy.bos_id == (BOS if expected else None)
    assert policy_of(tiny_tokenizer(template.replace("bos_token", "'<s>'"))).start_ids == ()


def test_contents_that_are_written_twice_are_passed_over_to_the_last():
    policy = policy_of(tiny_tokenizer(CHATML.replace("{{ m['content'] }}", "{{ m['content'] + '-' + m['content'] }}")))
    assert (policy.template_tail, policy.response_start) == ("<|im_end|>\n", "<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("layout", "pad_id", "skip_id"),
    [
        ("sequence_classification", 0, 0),
        ("sequence_classification", 319, 319),
        ("sequence_classification", 320, None),
        ("adapter", -1, None),
        ("adapter", None, None),
        ("language_model", END, None),
    ],
)
def test_a_pad_token_is_skipped_by_classifiers_that_have_a_row_for_it(layout, pad_id, skip_id):
    assert policy_of(tiny_tokenizer(CHATML), layout, pad_id=pad_id).skip_id == skip_id


@pytest.mark.parametrize(
    ("layout", "template", "pad_id", "drops"),
    [
        ("sequence_classification", CHATML, PAD, False),
        ("sequence_classification", CHATML, END, True),
        ("sequence_classification", CHATML, 5, True),
        ("sequence_classification", CHATML, 319, True),
        ("language_model", CHATML, END, False),
    ],
)
def test_a_row_loses_ids_that_were_read_where_the_pad_token_is_text_or_of_the_ending(layout, template, pad_id, drops):
    assert policy_of(tiny_tokenizer(template), layout, pad_id=pad_id).drops_read_ids is drops


# -- endings ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tail", "layout", "end"),
    [
        ("", "openrlhf", " <|im_end|>"),
        ("\n\n", "openrlhf", " <|im_end|>"),
        ("<|im_end|>\n", "openrlhf", "<|im_end|>"),
        ("X\n", "openrlhf", "X <|im_end|>"),
        ("<|endoftext|> \n", "openrlhf", "<|endoftext|>  <|im_end|>"),
        ("", "language_model", "<|im_end|>"),
        ("## \n", "language_model", "##<|im_end|>"),
        (" <|endoftext|>\n<|im_start|>", "language_model", " <|endoftext|>\n<|im_start|>"),
        (" <|endoftext|> x<|im_start|>\n", "language_model", " <|endoftext|> x<|im_start|>"),
        ("", "sequence_classification", ""),
        ("## \n", "sequence_classification", "## \n"),
        ("## \n", "trl_value_head", "## \n<|im_end|>"),
        ("<|endoftext|>\n", "trl_value_head", "<|endoftext|>\n"),
    ],
)
def test_the_ending_is_the_layouts(tail, layout, end):
    tokenizer = tiny_tokenizer(turns(tail))
    policy = policy_of(tokenizer, layout)
    assert (policy.template_tail, policy.end_text, policy.end_ids) == (tail, end, ids(tokenizer, end))


def test_eos_follows_whatever_the_template_writes_where_the_rule_says_so():
    rule = replace(LAYOUT_RULES["trl_value_head"], ending="template_and_eos")
    for tail in ("x", "<|endoftext|>"):
        policy = infer_policy(tiny_tokenizer(turns(tail)), max_tokens=9, vocab_size=320, rule=rule)
        assert policy.end_text == tail + "<|im_end|>"


@pytest.mark.parametrize(
    ("layout", "end"), [("openrlhf", " <|im_end|>"), ("language_model", "<|im_end|>"), ("adapter", "<|im_end|>")]
)
def test_without_a_template_eos_is_the_ending(layout, end):
    assert policy_of(tiny_tokenizer(None), layout).end_text == end


@pytest.mark.parametrize("layout", ["openrlhf", "language_model", "adapter", "trl_value_head"])
def test_a_tokenizer_without_eos_is_refused_where_it_is_needed(layout):
    tokenizer = tiny_tokenizer(None)
    tokenizer.eos_token = None
    with pytest.raises(EncodingPolicyError) as refused:
        policy_of(tokenizer, layout)
    assert str(refused.value) == "the tokenizer has neither an EOS token nor a template that closes a turn"


def test_newlines_go_with_the_templates_own_where_openrlhf_removes_them():
    strips = {
        (layout, tail): policy_of(tiny_tokenizer(turns(tail)), layout).strips_newlines
        for layout in ("openrlhf", "trl_value_head")
        for tail in ("", "\n\n", " \n", "X\n")
    }
    assert {case for case, strip in strips.items() if strip} == {("openrlhf", ""), ("openrlhf", "\n\n")}


VARYING = {
    "a system turn": turns("{{ 's' if messages[0]['role'] == 'system' else 'n' }}"),
    "a longer conversation": turns("{{ 's' if messages | length == 4 else 'n' }}"),
    "a full stop": turns("{{ 's' if messages[-1]['content'].endswith('.') else 'n' }}"),
    "a longer conversation, and other roles are refused": turns(
        "{% for m in messages %}{% if m['role'] not in ('system', 'user', 'assistant') %}{{ raise_exception('no') }}{% endif %}"
        "{% endfor %}"
        "{{ 's' if messages | length == 4 else 'n' }}"
    ),
    "a system turn, and long conversations are refused": turns(
        "{% if messages | length == 4 %}{{ raise_exception('no') }}{% endif %}{{ 's' if messages[0]['role'] == 'system' else 'n' }}"
    ),
    "a full stop, and other roles are refused": turns(
        "{% for m in messages %}{% if m['role'] not in ('user', 'assistant') %}{{ raise_exception('no') }}{% endif %}{% endfor %}"
        "{{ 's' if messages[-1]['role'] == 'assistant' and messages[-1]['content'].endswith('.') else 'n' }}"
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", VARYING)
def test_an_ending_that_depends_on_the_conversation_is_seen(name):
    tokenizer = tiny_tokenizer(VARYING[name])
    policy = policy_of(tokenizer, "openrlhf")
    assert policy.ending_varies
    assert policy.template_tail == "n"
    for layout in ("language_model", "llama_factory"):
        with pytest.raises(EncodingPolicyError) as refused:
            policy_of(tokenizer, layout)
        assert str(refused.value) == (
            "the chat template ends conversations in different ways ('n', 's'), so the token at which the score is read is "
            "not known. Let it end all of them in the same way, or, for a transformers classifier or its adapter, set the "
            "ending to `template`."
        )


def test_what_a_tokenizer_adds_behind_text_is_no_part_of_an_ending():
    tokenizer = letters(("r", "x"), template=turns("x</s>y"))
    end = tokenizer.eos_token_id
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])
    assert policy_of(tokenizer).end_text == "x</s>"
    assert ids_of(tokenizer._tokenizer, "ab") == tuple(tokenizer.convert_tokens_to_ids(["a", "b"]))
    assert _ids_from(tokenizer._tokenizer, "arx", 2, ()) == tuple(tokenizer.convert_tokens_to_ids(["x"]))
    assert _ids_from(tokenizer._tokenizer, "ab", 0, ()) == tuple(tokenizer.convert_tokens_to_ids(["a", "b"]))


def test_slots_have_one_ending():
    rule = replace(LAYOUT_RULES["llama_factory"], ending="template")
    with pytest.raises(EncodingPolicyError, match="different ways"):
        infer_policy(tiny_tokenizer(VARYING["a full stop"]), max_tokens=9, vocab_size=320, rule=rule)


def test_a_content_that_is_not_written_as_it_is_shows_no_ending():
    written_content = "{{ m['content'] | upper if messages[0]['role'] == 'system' else m['content'] + m['content'] }}"
    assert not policy_of(
        tiny_tokenizer(CHATML.replace("{{ m['content'] }}", written_content)), "openrlhf"
    ).ending_varies


def test_a_template_that_renders_no_conversation_in_time_is_no_template_that_refuses_one():
    def render(error):
        def refuse(messages, *, add_generation_prompt):
            raise error("no")

        return refuse

    assert _tails(render(InvalidMessages)) == []
    with pytest.raises(ConversationTooSlow):
        _tails(render(ConversationTooSlow))


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_of_several_chat_templates_that_called_default_is_taken():
    tokenizer = tiny_tokenizer(None)
    tokenizer.chat_template = {"tool_use": "x", "default": CHATML}
    assert policy_of(tokenizer).template == CHATML
    tokenizer.chat_template = {"tool_use": "x", "rag": "y"}
    with pytest.raises(EncodingPolicyError) as refused:
        policy_of(tokenizer)
    assert str(refused.value) == (
        "the tokenizer has several chat templates (rag, tool_use) and none is called default, so transformers chooses none. "
        "Save the one that training used as chat_template.jinja in the folder of the checkpoint."
    )


@pytest.mark.parametrize(
    "template",
    [
        CHATML.replace("<|im_end|>", "<extra_0>"),
        CHATML.replace("{% if add_generation_prompt %}", "{% if add_generation_prompt %}<extra_0>"),
        "{{ '<extra_0>' }}" + CHATML,
    ],
    ids=["end", "response", "beginning"],
)
def test_a_token_of_every_sample_has_a_row(template):
    tokenizer = tiny_tokenizer(template)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<extra_0>", "<extra_1>"]})
    assert tokenizer.convert_tokens_to_ids("<extra_0>") == 320
    assert policy_of(tokenizer, "sequence_classification", vocab_size=321).vocab_size == 321
    with pytest.raises(EncodingPolicyError) as refused:
        policy_of(tokenizer, "sequence_classification")
    assert str(refused.value) == (
        "the tokenizer or its chat template puts '<extra_0>' into every sample, and the model has no embedding for it: its table "
        "has 320 rows. Restore the tokenizer that the model was trained with, or resize the embeddings of the model and train "
        "them."
    )


def test_a_memory_address_in_a_rendering_is_refused():
    with pytest.raises(EncodingPolicyError, match="memory address"):
        policy_of(tiny_tokenizer(CHATML + "{{ messages | map('upper') }}"))


# -- words ------------------------------------------------------------------------------------------------------------

SKIPPED = "which ends a turn and is skipped because pad_token_id is"
ITS_NEWLINE = "the last of the rendering without its newline"
WITHOUT = "token 2 `<|im_end|>`, the last of the rendering without the"
ADDED = "which is added to the"


@pytest.mark.parametrize(
    ("template", "layout", "pad", "where"),
    [
        (CHATML, "language_model", None, f"token 2 `<|im_end|>`, {ITS_NEWLINE}"),
        (CHATML, "trl_value_head", None, "token 203 `\\n`, the last of the rendering"),
        (CLOSED, "language_model", None, "token 2 `<|im_end|>`, the last of the rendering"),
        (turns("<|im_end|>X\n"), "language_model", None, f"{WITHOUT} 'X\\n' after it"),
        (turns("<|im_end|> \n"), "language_model", None, f"{WITHOUT} ' \\n' after it"),
        (turns("<|im_end|>\n\n"), "language_model", None, f"token 2 `<|im_end|>`, {ITS_NEWLINE}"),
        (turns("x"), "trl_value_head", None, f"token 2 `<|im_end|>`, {ADDED} rendering"),
        (None, "language_model", None, f"token 2 `<|im_end|>`, {ADDED} text"),
        (turns(""), "adapter", None, "the response's last token, which ends the rendering"),
        (CLOSED, "adapter", "<|im_end|>",
         f"the response's last token, the last before `<|im_end|>`, {SKIPPED} 2 too"),
        (turns("<|im_end|><pad><pad>"), "adapter", "<pad>",
         f"token 2 `<|im_end|>`, the last before `<pad>`, {SKIPPED} 4 too"),
        (CHATML, "adapter", "\n",
         f"token 2 `<|im_end|>`, the last before `\\n`, {SKIPPED} 203 too"),
        (VARYING["a full stop"], "adapter", None, "the last token of the rendering, whose ending depends on the conversation"),
    ],
)  # fmt: skip
def test_where_a_score_is_read_is_said_in_words(template, layout, pad, where):
    tokenizer = tiny_tokenizer(template)
    assert ids(tokenizer, "\n") == (203,)
    pad_id = None if pad is None else ids(tokenizer, pad)[0]
    words = describe_position(tokenizer, policy_of(tokenizer, layout, pad_id=pad_id))
    assert words == f"reads the score at {where}, because {LAYOUT_RULES[layout].reason}"


# -- digests ----------------------------------------------------------------------------------------------------------


def test_the_digest_of_a_template_is_sha256_of_its_text():
    assert template_digest("abc") == "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_digest_of_a_tokenizer_is_sha256_of_its_file_without_what_it_adds_to_text():
    tokenizer = letters(("r", "r"))
    tokenizer.add_tokens(["é"])
    tokenizer._tokenizer.no_padding()
    tokenizer._tokenizer.no_truncation()
    state = json.loads(tokenizer._tokenizer.to_str())
    state = {key: value for key, value in state.items() if key not in ("padding", "truncation", "post_processor")}
    canonical = json.dumps(state, sort_keys=True).replace('": ', '":').replace(", ", ",")
    assert "\\u00e9" in canonical
    assert '", ' not in canonical
    expected = "sha256:" + hashlib.sha256(canonical.encode()).hexdigest()
    assert list(state) != sorted(state)
    assert tokenizer_digest(tokenizer) == expected
    tokenizer._tokenizer.enable_padding()
    tokenizer._tokenizer.enable_truncation(7)
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 1)])
    assert tokenizer_digest(tokenizer) == expected
    tokenizer.add_tokens(["ü"])
    assert tokenizer_digest(tokenizer) != expected


# -- pieces -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "start", "cuts", "parts"),
    [
        ("abc", 0, (), ("ab", "c")),
        ("abc", 1, (), ("b", "c")),
        ("abc", 1, (1,), ("b", "c")),
        ("abc", 2, (), ("c",)),
        ("abc", 3, (), ()),
        ("abc", 2, (3, 9), ("c",)),
        ("cabab", 3, (3,), ("ab",)),
        ("cabab", 4, (3,), ("b",)),
        ("cabab", 1, (3,), ("ab", "ab")),
        ("cabab", 2, (3,), ("b", "ab")),
        ("cabab", 3, (1, 3), ("ab",)),
        ("cabcab", 2, (4,), ("b", "c", "ab")),
    ],
)
def test_the_ids_of_the_end_of_a_text_are_its_own_where_a_token_reaches_over_its_beginning(text, start, cuts, parts):
    tokenizer = letters(("a", "b"))
    assert _ids_from(tokenizer._tokenizer, text, start, cuts) == tuple(tokenizer.convert_tokens_to_ids(list(parts)))


def test_what_a_tokenizer_adds_to_text_stands_around_the_ids_of_the_text():
    def adding(whole: list[int], plain: list[int]):
        return lambda text, *, add_special_tokens: {
            "input_ids": (whole if add_special_tokens else plain) if text == "x" else [9]
        }

    assert _added_to_text(adding([7], [7])) == ((), ())
    assert _added_to_text(adding([1, 2, 7, 8, 3], [7, 8])) == ((1, 2), (3,))
    assert _added_to_text(adding([1, 7, 8], [7, 8])) == ((1,), ())
    assert _added_to_text(adding([7, 8, 1], [7, 8])) == ((), (1,))
    assert _added_to_text(adding([1, 6, 2], [7])) == ((), ())


def test_added_tokens_of_white_space_control_nothing():
    fast = tiny_tokenizer()._tokenizer
    fast.add_tokens(["\n\n\n", "word"])
    word = fast.token_to_id("word")
    assert control_ids(fast) == {0, 1, 2, 3, 4, word}
    assert [is_text(fast, token) for token in (0, 4, 5, fast.token_to_id("\n\n\n"), word, 4096)] == [
        False,
        False,
        True,
        True,
        False,
        False,
    ]


def test_the_text_of_a_token_is_what_becomes_it():
    fast = tiny_tokenizer()._tokenizer
    assert [text_of(fast, token) for token in (None, 4096, END, 5, 203)] == ["", "", "<|im_end|>", "!", "\n"]


def test_an_ending_is_cut_as_the_templates_and_before_an_eos_that_is_added():
    slots, _ = slots_of(written(answer="content + 'ab' + 'cd'"))
    assert slots.tail_cuts == (2,)
    assert end_cuts(None, "abcd", "abcd</s>") == ()
    assert end_cuts(slots, "abcd", "abcd</s>") == (2, 4)
    assert end_cuts(slots, "abcd", "abcd") == (2, 4)
    assert end_cuts(slots, "abcd", "abc</s>") == (2,)
    assert end_cuts(slots, "abcd", "ax") == ()


def test_tokens_at_the_end_of_a_row_are_counted():
    assert [n_trailing(row, 7) for row in ((), (7,), (7, 7), (7, 1), (1, 7, 7))] == [0, 1, 2, 0, 2]


def test_a_chat_template_is_rendered_under_the_date_that_is_given():
    template = CHATML + "{{ strftime_now('%Y') }}"
    tokenizer = tiny_tokenizer(template)
    assert policy_of(tokenizer, template_date="2031-05-06").template_tail == "<|im_end|>\n2031"
    assert ChatTemplate(tokenizer, template, "2031-05-06").clock("%m") == "05"

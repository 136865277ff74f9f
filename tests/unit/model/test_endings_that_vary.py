"""Chat templates that end conversations in different ways. The reference is the row of the layout's trainer."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rewardserve.model.conversation import InvalidMessages, Message, Sample
from rewardserve.model.encoding import Encoder
from rewardserve.model.layout_rules import LAYOUT_RULES
from rewardserve.model.templates.chat_template import EncodingPolicyError
from rewardserve.model.tokenization.encoding_policy import describe_position, infer_policy
from tests.support.tiny import CHATML, tiny_tokenizer

_TURN = "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] }}"
_OPENS = "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
TEMPLATES = {
    "no end after a full stop": f"{{% for m in messages %}}{_TURN}{{{{ eos_token if not m['content'].endswith('.') else '' }}}}"
    f"{{% endfor %}}{_OPENS}",
    "an end after a full stop alone": f"{{% for m in messages %}}{_TURN}{{{{ eos_token if m['content'].endswith('.') else '' }}}}"
    f"{{% endfor %}}{_OPENS}",
    "by the number of turns": f"{{% for m in messages %}}{_TURN}"
    f"{{{{ '<|im_end|>\n' if messages | length > 2 else '<|endoftext|>' }}}}{{% endfor %}}{_OPENS}",
    "by a system turn": CHATML
    + "{% if messages[0]['role'] == 'system' and not add_generation_prompt %}{{ '<|endoftext|>' }}{% endif %}",
    "by length": f"{{% for m in messages %}}{_TURN}"
    f"{{{{ '<|im_end|>\n' if m['content'] | length > 100 else '<|endoftext|>\n' }}}}{{% endfor %}}{_OPENS}",
}
USER = Message("user", "What is two plus two?")
TALKS = [
    (USER, Message("assistant", "Four, of course")),
    (USER, Message("assistant", "Done.")),
    (USER, Message("assistant", "It is four \n")),
    (USER, Message("assistant", "a fox " * 30)),
    (USER, Message("assistant", "Four"), Message("user", "And three?"), Message("assistant", "Five.")),
    (Message("system", "Be brief."), USER, Message("assistant", "Four!")),
    (USER, Message("assistant", "say <|im_start|> and <|endoftext|> twice")),
]
WHOLE = TALKS[:-1]


def rendered(tokenizer, talk) -> str:
    return tokenizer.apply_chat_template([{"role": m.role, "content": m.content} for m in talk], tokenize=False)


def openrlhf(text: str, eos: str) -> str:
    """`RewardDataset.__getitem__`."""
    text = text.rstrip("\n")
    return text if text.endswith(eos) else text + " " + eos


def encoder(template: str, layout: str):
    tokenizer = tiny_tokenizer(template)
    return tokenizer, Encoder(
        tokenizer, infer_policy(tokenizer, max_tokens=4096, vocab_size=320, rule=LAYOUT_RULES[layout])
    )


@pytest.mark.parametrize("layout", ["sequence_classification", "openrlhf"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_row_ends_as_its_own_rendering_does(template, layout):
    tokenizer, encode = encoder(TEMPLATES[template], layout)
    for talk in WHOLE:
        text = rendered(tokenizer, talk)
        row = openrlhf(text, tokenizer.eos_token) if layout == "openrlhf" else text
        ids = tokenizer(row, add_special_tokens=False)["input_ids"]
        given = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
        assert list(encode(Sample(messages=talk)).ids) == ids
        assert list(encode(Sample(prompt=talk[:-1], response=talk[-1].content)).ids) == ids
        assert list(encode(Sample(text=text)).ids) == ids
        assert list(encode(Sample(input_ids=given)).ids) == ids
    assert any("ends conversations in different ways" in note for note in encode.notes)
    assert "depends on the conversation" in describe_position(tokenizer, encode.policy)


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_response_that_was_cut_off_has_no_end(template):
    tokenizer, encode = encoder(TEMPLATES[template], "sequence_classification")
    for talk in WHOLE:
        encoded = encode(Sample(messages=talk, finish_reason="length"))
        text = rendered(tokenizer, talk)
        end = text.rindex(talk[-1].content) + len(talk[-1].content)
        assert list(encoded.ids) == tokenizer(text[:end], add_special_tokens=False)["input_ids"]
        assert encoded.missing_end


@pytest.mark.parametrize("template", TEMPLATES)
def test_a_quoted_control_token_stays_text_and_the_ending_is_the_templates(template):
    tokenizer, encode = encoder(TEMPLATES[template], "sequence_classification")
    quoting, plain = TALKS[-1], (USER, Message("assistant", "say nothing special twice"))
    text = rendered(tokenizer, plain)
    tail = tokenizer(text[text.rindex("twice") + 5 :], add_special_tokens=False)["input_ids"]
    ids = list(encode(Sample(messages=quoting)).ids)
    assert ids[len(ids) - len(tail) :] == tail
    assert tokenizer.decode(ids).endswith(f"say <|im_start|> and <|endoftext|> twice{tokenizer.decode(tail)}")
    assert ids.count(1) == tokenizer(text, add_special_tokens=False)["input_ids"].count(1)


@pytest.mark.parametrize("layout", ["language_model", "rewardserve", "llama_factory", "trl_value_head"])
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_layout_whose_end_depends_on_the_templates_is_refused(template, layout):
    with pytest.raises(EncodingPolicyError, match="ends conversations in different ways"):
        encoder(TEMPLATES[template], layout)


@pytest.mark.parametrize("usual", ["<|im_end|>\n", ""], ids=["an end", "no end"])
def test_an_ending_that_no_probe_has_shown_is_taken_or_refused_and_never_doubled(usual):
    turn = f"{{% for m in messages %}}{_TURN}"
    other = "{{ '<|im_end|>\n' if not USUAL else '<|endoftext|>' }}".replace("USUAL", repr(usual))
    template = f"{turn}{{% if 'xyzzy' in m['content'] %}}{other}{{% else %}}{{{{ {usual!r} }}}}{{% endif %}}{{% endfor %}}{_OPENS}"
    talk = (USER, Message("assistant", "xyzzy"))
    for layout in ("sequence_classification", "openrlhf"):
        tokenizer, encode = encoder(template, layout)
        text = rendered(tokenizer, talk)
        row = openrlhf(text, tokenizer.eos_token) if layout == "openrlhf" else text
        ids = tokenizer(row, add_special_tokens=False)["input_ids"]
        assert list(encode(Sample(messages=talk)).ids) == ids
        cut = encode(Sample(messages=talk, finish_reason="length")).ids
        assert tokenizer.decode(cut).endswith("assistant\nxyzzy")
    _, encode = encoder(template, "trl_value_head")
    encode(Sample(messages=TALKS[0]))
    with pytest.raises(InvalidMessages, match="does not end this conversation with"):
        encode(Sample(messages=talk))


def test_a_template_that_writes_the_content_otherwise_has_one_ending():
    """Reasoning is left out, white space is trimmed, text becomes JSON: the ending is the same."""
    for written in ("m['content'].split('</think>')[-1]", "m['content'] | trim", "m['content'] | tojson"):
        template = CHATML.replace("m['content']", written)
        for layout in ("sequence_classification", "language_model"):
            tokenizer, encode = encoder(template, layout)
            assert not encode.policy.ending_varies
            for content in ("a</think>b", " x \n", 'say "</think>"', "</think>"):
                talk = (Message("user", f"what does {content} mean"), Message("assistant", content))
                ids = tokenizer(rendered(tokenizer, talk), add_special_tokens=False)["input_ids"]
                end = len(ids) - (layout == "language_model")
                assert list(encode(Sample(messages=talk)).ids) == ids[:end]


_IN_FRONT = "('<think></think>\\n' if m['role'] == 'assistant' else '') + m['content']"
REWRITES = {
    # how the template writes a content, the system prompt, a response that was cut off, what the template makes of it
    "reasoning left out": (
        "m['content'].split('</think>')[-1].lstrip('\n') if m['role'] == 'assistant' else m['content']",
        "Be <think>why\n</think>\n\nTwo", "<think>why\n</think>\n\nTwo", "Two",
    ),
    "white space trimmed": ("m['content'] | trim", "Be x \n", "x \n", "x"),
    "text in front": (_IN_FRONT, "Be", "<think>", "<think></think>\n<think>"),
    "text in front, newline": (_IN_FRONT, "Be", "<think>\n", "<think></think>\n<think>\n"),
    "a full stop where none is": ("m['content'] + ('' if m['content'][-1:] in '.!?' else '.')", "Be", "Two of", "Two of"),
    "text after a full stop": ("m['content'] + (' ok' if m['content'][-1:] == '.' else '')", "Be ok", "Two. ok.", "Two. ok."),
    "newlines by turns": ("m['content'] + ('\n\n' if loop.index is odd else '\n')", "Be", "x\n", "x\n"),
}  # fmt: skip
VARYING = {
    "by the number of turns": "{{ '<|im_end|>\n' if messages | length > 2 else '<|endoftext|>' }}",
    "of another token": "{{ '<|im_end|>' if m['content'] | length > 40 else '<|endoftext|>' }}",
}


@pytest.mark.parametrize("layout", ["sequence_classification", "openrlhf"])
@pytest.mark.parametrize("varying", VARYING)
@pytest.mark.parametrize("rewrite", REWRITES)
def test_a_response_that_was_cut_off_ends_where_the_template_wrote_its_last_character(rewrite, varying, layout):
    written, system, response, kept = REWRITES[rewrite]
    turn = f"{{{{ '<|im_start|>' + m['role'] + '\n' + ({written}) }}}}"
    template = f"{{% for m in messages %}}{turn}{VARYING[varying]}{{% endfor %}}{_OPENS}"
    tokenizer, encode = encoder(template, layout)
    for talk in (
        (Message("user", "hi"), Message("assistant", response)),
        (Message("system", system), Message("user", "hi"), Message("assistant", response)),
        (Message("system", response), Message("user", f"hi {response}"), Message("assistant", response)),
    ):
        whole = rendered(tokenizer, talk)
        begin = whole.rindex("<|im_start|>assistant\n") + len("<|im_start|>assistant\n")
        assert whole.startswith(kept, begin)
        row = tokenizer(whole[:begin] + kept, add_special_tokens=False)["input_ids"]
        encoded = encode(Sample(messages=talk, finish_reason="length"))
        assert list(encoded.ids) == row
        assert encoded.missing_end


def test_ids_of_a_response_that_was_cut_off_keep_their_newlines_as_its_text_does():
    tokenizer, encode = encoder(CHATML, "openrlhf")
    for response in ("x\n", "x \n\n", "x"):
        talk = (USER, Message("assistant", response))
        row = rendered(tokenizer, talk).removesuffix("<|im_end|>\n")
        given = tuple(tokenizer(row, add_special_tokens=False)["input_ids"])
        for sample in (Sample(messages=talk), Sample(text=row), Sample(input_ids=given)):
            assert encode(replace(sample, finish_reason="length")).ids == given

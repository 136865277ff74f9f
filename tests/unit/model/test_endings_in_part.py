"""A response, text or ids that end with a part of the ending get the same row as without it, which is the layout's trainer's."""

from __future__ import annotations

import pytest
from tokenizers.processors import TemplateProcessing

from rewardserve.model.conversation import Message, Sample
from rewardserve.model.encoding import Encoder
from rewardserve.model.layout_rules import LAYOUT_RULES
from rewardserve.model.tokenization.encoding_policy import infer_policy
from tests.support.tiny import CHATML, tiny_tokenizer

TALKS = (
    (("user", "What is two plus two?"), ("assistant", "Four, of course.")),
    (("system", "Be brief."), ("user", "Hi"), ("assistant", "a fox\n\nand a dog")),
    (("user", "one"), ("assistant", "two"), ("user", "three"), ("assistant", "Ünïcödé 你好")),
)
LAYOUTS = ("language_model", "sequence_classification", "openrlhf", "trl_value_head")
EOS = "<|endoftext|>"
CONTROL_TAILS = {
    "two end tokens": f"<|im_end|>{EOS}\n",
    "one end token twice": "<|im_end|><|im_end|>\n",
    "text after the end token": "<|im_end|>\n--\n",
    "text before the end token": " (end)<|im_end|>\n",
}
PLAIN = {
    "tags": "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}</{{ m['role'] }}>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}",
    "a line of signs": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n###\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}",
    "brackets": "{% for m in messages %}[{{ m['role'] }}]{{ m['content'] }}[/]{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}",
}


def encoder(template: str | None, layout: str):
    tokenizer = tiny_tokenizer(template, eos=EOS)
    policy = infer_policy(tokenizer, max_tokens=4096, vocab_size=320, rule=LAYOUT_RULES[layout], pad_id=4)
    return tokenizer, Encoder(tokenizer, policy)


def trained(tokenizer, layout: str, talk, tail: str) -> tuple[int, ...]:
    """The row of the layout's trainer; for a language model, which has none, that of `rewardserve train`."""
    text = tokenizer.apply_chat_template(turns(talk), tokenize=False)
    has_control = "<|" in tail
    if layout == "openrlhf":
        text = text.rstrip("\n")
        text += "" if text.endswith(EOS) else " " + EOS
    elif layout == "language_model":
        text = text[: text.rindex("|>") + 2] if has_control else text.rstrip() + EOS
        text += "--" if has_control and "--" in tail and text.endswith("--\n") else ""
    elif layout == "trl_value_head" and not has_control:
        text += EOS
    return tuple(tokenizer(text, add_special_tokens=False)["input_ids"])


def turns(talk):
    return [{"role": role, "content": content} for role, content in talk]


def ids(tokenizer, text: str) -> Sample:
    return Sample(input_ids=tuple(tokenizer(text, add_special_tokens=False)["input_ids"]))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("ending", CONTROL_TAILS)
def test_a_policy_may_stop_at_any_token_of_an_ending_of_several(ending, layout):
    tail = CONTROL_TAILS[ending]
    tokenizer, encode = encoder(CHATML.replace("<|im_end|>\n", tail), layout)
    first = tail[: tail.index("|>") + 2]
    for talk in TALKS:
        *before, (role, content) = talk
        expected = trained(tokenizer, layout, talk, tail)
        prompt = tokenizer.apply_chat_template(turns(before), tokenize=False, add_generation_prompt=True)
        for part in ("", "<|im_end|>", first, tail.rstrip(), tail):
            messages = tuple(Message(*turn) for turn in (*before, (role, content + part)))
            assert encode(Sample(messages=messages)).ids == expected
            assert encode(Sample(text=prompt + content + part)).ids == expected
        assert encode(ids(tokenizer, prompt + content + first)).ids == expected


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", PLAIN)
def test_rendered_text_that_ends_in_plain_text_is_not_closed_twice(name, layout):
    tokenizer, encode = encoder(PLAIN[name], layout)
    for talk in TALKS:
        expected = trained(tokenizer, layout, talk, "")
        rendering = tokenizer.apply_chat_template(turns(talk), tokenize=False)
        assert encode(Sample(messages=tuple(Message(*turn) for turn in talk))).ids == expected
        for text in (rendering, rendering.rstrip(), rendering.rstrip() + "\n\n"):
            assert encode(Sample(text=text)).ids == expected
        assert encode(ids(tokenizer, rendering)).ids == expected
        assert encode(Sample(input_ids=expected)).ids == expected


@pytest.mark.parametrize("layout", ["sequence_classification", "trl_value_head"])
def test_a_response_with_eos_is_closed_once_where_the_tokenizer_adds_eos_too(layout):
    """TRL: EOS unless the text ends with it, and then what the tokenizer adds by itself."""
    tokenizer = tiny_tokenizer(None, eos=EOS, bos="<s>")
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<s>", EOS)]
    tokenizer._tokenizer.post_processor = TemplateProcessing(single=f"<s> $A {EOS}", special_tokens=special)
    policy = infer_policy(tokenizer, max_tokens=4096, vocab_size=320, rule=LAYOUT_RULES[layout], pad_id=4)
    encode = Encoder(tokenizer, policy)
    expected = tuple(tokenizer(f"Hi there{EOS}")["input_ids"])
    assert expected[-2:] == (special[1][1],) * 2
    for response in (" there", f" there{EOS}", f" there{EOS}{EOS}"):
        assert encode(Sample(prompt="Hi", response=response)).ids == expected
        assert encode(Sample(text=f"Hi{response}")).ids == expected

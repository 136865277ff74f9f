"""A response without text, or of white space alone, is empty: in every form of a sample, for every template and layout."""

from __future__ import annotations

import pytest

from rewardserve.model.conversation import SCORE_EMPTY_OPTIONS, EmptyResponse, Sample
from rewardserve.model.encoding import Encoder
from rewardserve.model.layout_rules import LAYOUT_RULES
from rewardserve.model.tokenization.encoding_policy import infer_policy
from tests.score_table import TEMPLATES, tokenizer_of
from tests.security.families import FAMILIES

RESPONSES = ("", " ", "\n", " \n", "\n\n", "\t", "\u3000", "\n" * 50)
LAYOUTS = ("language_model", "sequence_classification", "openrlhf", "llama_factory", "trl_value_head")
CHATS = {name: lambda t=t: tokenizer_of(t, "separate") for name, t in TEMPLATES.items() if t.jinja is not None}
CHATS |= {f"family {name}": family.tokenizer for name, family in FAMILIES.items()}


def encoder_of(tokenizer, layout: str) -> Encoder:
    rule, pad = LAYOUT_RULES[layout], tokenizer.pad_token_id
    return Encoder(
        tokenizer, infer_policy(tokenizer, max_tokens=4096, vocab_size=len(tokenizer), rule=rule, pad_id=pad)
    )


def forms_of(tokenizer, response: str, **more) -> dict[str, Sample]:
    """The forms in which it is known where the response begins."""
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": response}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    prompt = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return {
        "prompt and response": Sample(prompt="Hi", response=response, **more),
        "rendered": Sample(text=text, **more),
        "prompt and what follows": Sample(text=prompt + response, **more),
        "the same, said": Sample(text=prompt + response, n_prompt_chars=len(prompt), **more),
        "ids": Sample(input_ids=tuple(ids), **more),
    }


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("chat", CHATS)
def test_it_is_refused_in_every_form(chat, layout):
    tokenizer = CHATS[chat]()
    encode = encoder_of(tokenizer, layout)
    for response in RESPONSES:
        for name, sample in forms_of(tokenizer, response).items():
            with pytest.raises(EmptyResponse):
                pytest.fail(f"{name}, {response!r}: {encode(sample)}")


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("chat", CHATS)
def test_any_other_character_is_a_response(chat, layout):
    tokenizer = CHATS[chat]()
    encode = encoder_of(tokenizer, layout)
    for response in (".", "\n.", ".\n", " a "):
        for sample in forms_of(tokenizer, response).values():
            assert encode(sample).ids


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("chat", CHATS)
def test_it_is_scored_in_every_form_where_the_wire_format_asks_for_it(chat, layout):
    tokenizer = CHATS[chat]()
    encode = encoder_of(tokenizer, layout)
    for response in RESPONSES:
        for sample in forms_of(tokenizer, response, options=SCORE_EMPTY_OPTIONS).values():
            encoded = encode(sample)
            assert encoded.ids
            assert not encoded.missing_end


def test_without_a_template_the_response_alone_decides():
    tokenizer = tokenizer_of(TEMPLATES["none"], "separate")
    encode = encoder_of(tokenizer, "sequence_classification")
    for response in RESPONSES:
        for sample in (
            Sample(prompt="Hi", response=response),
            Sample(text="Hi" + response, n_prompt_chars=2),
            Sample(text=response),
        ):
            with pytest.raises(EmptyResponse):
                encode(sample)
    assert encode(Sample(text="Hi")).ids, "where a response would begin, nothing says"

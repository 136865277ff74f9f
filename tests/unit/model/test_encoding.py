"""One encoding for training and serving: BOS, end token, whitespace, truncation, the four forms of a sample."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewardserve.model.conversation import (
    SCORE_EMPTY_OPTIONS,
    AmbiguousSample,
    EmptyPrompt,
    EmptyResponse,
    IncompleteSample,
    InputTooLong,
    InvalidMessages,
    InvalidText,
    Message,
    Sample,
    SampleOptions,
    TokenOutOfVocabulary,
)
from rewardserve.model.encoding import Encoder
from rewardserve.model.layout_rules import LAYOUT_RULES
from rewardserve.model.templates.chat_template import EncodingPolicyError
from rewardserve.model.tokenization.encoding_policy import infer_policy, tokenizer_digest
from tests.support.tiny import CHATML, LLAMA3_LIKE, tiny_tokenizer

END, BOS = 2, 3
STRICT_LLAMA3 = (
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{% endfor %}" + LLAMA3_LIKE
)


def encoder(
    template: str | None = CHATML, *, strip: bool = True, max_tokens: int = 200, truncation="prompt_left", **tok
):
    tokenizer = tiny_tokenizer(template, **tok)
    policy = infer_policy(
        tokenizer,
        max_tokens=max_tokens,
        vocab_size=320,
        rule=LAYOUT_RULES["language_model" if strip else "trl_value_head"],
        truncation=truncation,
    )
    return Encoder(tokenizer, policy), tokenizer


def bos_encoder(**kw):
    return encoder(LLAMA3_LIKE, bos="<s>", **kw)


TURNS = (Message("system", "Be brief."), Message("user", "Why?"), Message("assistant", "So."), Message("user", "And?"))


@pytest.mark.parametrize("template", [CHATML, LLAMA3_LIKE])
def test_the_first_turns_of_a_rendered_conversation_end_before_its_first_response(template):
    encode, tokenizer = encoder(template, bos="<s>")
    messages = [{"role": m.role, "content": m.content} for m in TURNS]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) + "Then."
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    for sample in (Sample(text=text), Sample(text=text, n_prompt_chars=len(text) - 5), Sample(input_ids=ids)):
        found = encode.first_turns(sample)
        assert "Be brief." in found
        assert found.count("Why?") == 1
        assert "So." not in found
    single = tokenizer.apply_chat_template(messages[1:2], tokenize=False, add_generation_prompt=True)
    assert encode.first_turns(Sample(text=single + "So.")).startswith("Why?")
    assert encode.first_turns(Sample(input_ids=tuple(tokenizer(single)["input_ids"]))).startswith("Why?")


def test_of_a_prompt_without_a_known_response_the_beginning_is_read():
    encode, _ = encoder()
    text = "Human: why? " * 40
    assert encode.first_turns(Sample(text=text, n_prompt_chars=24)) == text[:24]
    assert encode.first_turns(Sample(text=text, n_prompt_chars=400)) == text[:200]
    assert encode.first_turns(Sample(text=text)) == encode.first_turns(Sample(input_ids=(5, 6, 7))) == ""
    assert encode.first_turns(Sample(prompt="why?", response="so")) == ""


def at_most(encode: Encoder, max_tokens: int) -> Encoder:
    """The same encoder under a lower limit."""
    lower = copy.copy(encode)
    lower.policy = replace(encode.policy, max_tokens=max_tokens)
    return lower


CHAT = (Message("user", "What is two plus two?"), Message("assistant", "Four, of course."))


def rendered(tokenizer, messages=CHAT) -> str:
    return tokenizer.apply_chat_template([{"role": m.role, "content": m.content} for m in messages], tokenize=False)


# -- forms ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [encoder, bos_encoder], ids=["chatml", "bos"])
def test_the_four_forms_of_one_conversation_have_the_same_ids(make):
    encode, tokenizer = make()
    pair = encode(Sample(prompt=CHAT[0].content, response=CHAT[1].content))
    assert encode(Sample(prompt=CHAT[:1], response=CHAT[1].content)) == pair
    assert encode(Sample(messages=CHAT)) == pair
    assert encode(Sample(text=rendered(tokenizer))) == pair
    assert encode(Sample(input_ids=pair.ids)) == pair


def test_where_the_score_is_read_at_the_templates_last_token_ids_are_those_of_plain_transformers():
    encode, tokenizer = encoder(strip=False)
    plain = tokenizer(rendered(tokenizer), add_special_tokens=False)["input_ids"]
    assert list(encode(Sample(messages=CHAT)).ids) == plain
    assert tokenizer.decode(plain[-1:]) == "\n"


def test_our_own_training_reads_the_score_at_the_end_token():
    encode, tokenizer = encoder(strip=True)
    plain = tokenizer(rendered(tokenizer), add_special_tokens=False)["input_ids"]
    assert list(encode(Sample(messages=CHAT)).ids) == plain[:-1]
    assert plain[-2] == END


def test_without_a_template_prompt_and_response_are_joined_and_closed_with_eos():
    encode, tokenizer = encoder(None)
    ids = encode(Sample(prompt="a b", response=" c")).ids
    assert ids == (*tokenizer("a b c", add_special_tokens=False)["input_ids"], END)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": "a", "response": "b", "text": "c"},
        {"prompt": "a", "text": "c"},
        {"text": "c", "input_ids": (1,)},
        {"messages": CHAT, "prompt": "a"},
    ],
)
def test_a_sample_has_one_form_at_most(fields):
    with pytest.raises(AmbiguousSample, match="the sample has 2 forms: give exactly one of"):
        Sample(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "the sample has no text"),
        ({"prompt": "a"}, "response is missing"),
        ({"prompt": CHAT}, "response is missing"),
        ({"response": "b"}, "prompt is missing"),
    ],
)
def test_a_sample_that_lacks_a_text_names_it(fields, message):
    with pytest.raises(IncompleteSample, match=message):
        Sample(**fields)


# -- n_prompt ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [encoder, bos_encoder], ids=["chatml", "bos"])
def test_n_prompt_is_where_the_response_begins(make):
    encode, tokenizer = make()
    for sample in (Sample(messages=CHAT), Sample(text=rendered(tokenizer))):
        encoded = encode(sample)
        assert tokenizer.decode(encoded.ids[encoded.n_prompt : -1]) == CHAT[1].content
    again = encode(Sample(input_ids=encode(Sample(messages=CHAT)).ids))
    assert tokenizer.decode(again.ids[again.n_prompt : -1]) == CHAT[1].content


# -- BOS --------------------------------------------------------------------------------------------------------------


def test_bos_is_there_exactly_once_whatever_the_caller_wrote():
    encode, tokenizer = bos_encoder()
    expected = encode(Sample(messages=CHAT))
    assert expected.ids[0] == BOS
    assert BOS not in expected.ids[1:]
    text = rendered(tokenizer)
    for same in (text, text.removeprefix("<s>"), "<s>" + text, "<s><s>" + text):
        assert encode(Sample(text=same)) == expected
    for ids in (expected.ids[1:], (BOS, *expected.ids), (BOS, BOS, *expected.ids)):
        assert encode(Sample(input_ids=ids)) == expected


def test_chatml_whose_turn_opener_is_called_bos_gets_no_extra_one():
    encode, _ = encoder(CHATML, bos="<|im_start|>")  # as in SmolLM2's tokenizer
    assert encode.policy.bos_id is None
    assert encode(Sample(messages=CHAT)).ids[:2] != (1, 1)


# -- ending -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strip", [True, False])
@pytest.mark.parametrize("ending", ["", "<|im_end|>", "<|im_end|>\n"])
def test_rendered_text_ends_as_in_training_however_the_caller_ended_it(ending, strip):
    encode, tokenizer = encoder(strip=strip)
    body = rendered(tokenizer).removesuffix("<|im_end|>\n")
    encoded = encode(Sample(text=body + ending))
    assert encoded == encode(Sample(messages=CHAT))
    assert not encoded.missing_end


def test_a_response_that_was_cut_off_has_no_end_token_and_is_flagged():
    encode, tokenizer = encoder()
    whole = encode(Sample(messages=CHAT))
    samples = [
        Sample(messages=CHAT, finish_reason="length"),
        Sample(prompt=CHAT[0].content, response=CHAT[1].content, finish_reason="length"),
        Sample(text=rendered(tokenizer).removesuffix("<|im_end|>\n"), finish_reason="length"),
        Sample(input_ids=whole.ids[:-1], finish_reason="length"),
    ]
    for sample in samples:
        cut = encode(sample)
        assert cut.missing_end
        assert cut.ids == whole.ids[:-1]
        assert cut.n_prompt == whole.n_prompt


def test_an_end_token_that_is_there_is_not_called_missing():
    encode, tokenizer = encoder()
    assert not encode(Sample(text=rendered(tokenizer), finish_reason="length")).missing_end
    assert not encode(Sample(prompt="a", response="b<|im_end|>", finish_reason="length")).missing_end


@pytest.mark.parametrize("strip", [True, False])
@pytest.mark.parametrize("ending", ["", "<|im_end|>", "<|im_end|>\n"])
@pytest.mark.parametrize("finish_reason", ["stop", "length"])
def test_ids_end_as_in_training_however_the_caller_ended_them(ending, strip, finish_reason):
    encode, tokenizer = encoder(strip=strip)
    body = rendered(tokenizer).removesuffix("<|im_end|>\n")
    ids = tuple(tokenizer(body + ending, add_special_tokens=False)["input_ids"])
    encoded = encode(Sample(input_ids=ids, finish_reason=finish_reason))
    if not ending and finish_reason == "length":
        assert encoded.missing_end
        assert encoded.ids == ids
    else:
        assert encoded == encode(Sample(messages=CHAT))


@pytest.mark.parametrize("ending", ["<|im_end|>", "<|im_end|>\n"])
def test_a_response_with_its_ending_gets_no_second_one(ending):
    for strip in (True, False):
        encode, _ = encoder(strip=strip)
        assert encode(Sample(prompt="a", response="b" + ending)) == encode(Sample(prompt="a", response="b"))


def test_trailing_newlines_of_a_response_are_text_and_no_ending():
    encode, tokenizer = encoder()
    assert tokenizer.decode(encode(Sample(prompt="a", response="b\n\n")).ids).endswith("b\n\n<|im_end|>")
    encode, tokenizer = encoder(
        CHATML.replace("<|im_end|>\n", "\n")
    )  # a template that closes a turn with a newline only
    assert tokenizer.decode(encode(Sample(prompt="a", response="b\n")).ids).endswith("b\n<|im_end|>")
    ids = tuple(tokenizer("b\n", add_special_tokens=False)["input_ids"])
    assert encode(Sample(input_ids=ids)).ids == (*ids, END)


# -- whitespace -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [encoder, bos_encoder], ids=["chatml", "bos"])
@settings(max_examples=60, deadline=None)
@given(
    prompt=st.text(st.sampled_from(" \n\tab.é你🙂"), min_size=1, max_size=12),
    response=st.text(st.sampled_from(" \n\tab.é你🙂"), min_size=1, max_size=12),
)
def test_nothing_of_the_text_is_lost_and_whitespace_is_never_stripped(make, prompt, response):
    encode, tokenizer = _cached(make)
    encoded = encode(Sample(prompt=prompt, response=response, options=SCORE_EMPTY_OPTIONS))
    text = tokenizer.decode(encoded.ids)
    assert text.endswith(response + "<|im_end|>")
    assert prompt in text
    assert encoded.ids[-1] == END


_CACHE: dict = {}


def _cached(make):
    if make not in _CACHE:
        _CACHE[make] = make()
    return _CACHE[make]


# -- truncation -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [encoder, bos_encoder], ids=["chatml", "bos"])
@settings(max_examples=60, deadline=None)
@given(n_prompt=st.integers(1, 300), n_response=st.integers(1, 60), limit=st.integers(8, 90))
def test_truncation_cuts_the_prompts_left_and_never_the_response(make, n_prompt, n_response, limit):
    encode, _ = _cached(make)
    free = encode(Sample(prompt="a " * (n_prompt % 60), response="b " * n_response)) if n_prompt % 60 else None
    if free is None:
        return
    response = free.ids[free.n_prompt :]
    head = 0 if encode.policy.bos_id is None else 1
    sample = Sample(prompt="a " * (n_prompt % 60), response="b " * n_response)
    if len(response) + head > limit:
        with pytest.raises(InputTooLong) as error:
            at_most(encode, limit)(sample)
        assert error.value.details == {"n": len(response) + head, "limit": limit}
        return
    cut = at_most(encode, limit)(sample)
    assert len(cut.ids) == min(limit, len(free.ids))
    assert cut.truncated == (len(free.ids) > limit)
    assert cut.ids[cut.n_prompt :] == response
    kept = cut.ids[head:]
    assert free.ids[len(free.ids) - len(kept) :] == kept
    assert cut.ids[:head] == free.ids[:head]


def test_the_response_is_known_also_where_its_whole_prompt_was_cut_off():
    encode, _ = encoder()
    whole = encode(Sample(prompt="a " * 40, response="Fine, then"))
    response = whole.ids[whole.n_prompt :]
    assert whole.response == response
    cut = at_most(encode, len(response))(Sample(prompt="a " * 40, response="Fine, then"))
    assert (cut.ids, cut.n_prompt, cut.response) == (response, 0, response)
    assert encode(Sample(input_ids=whole.ids)).response == response
    assert encode(Sample(text="an essay")).response is None


def test_with_truncation_off_a_long_sample_is_an_error_with_both_numbers():
    encode, _ = encoder(max_tokens=30, truncation="error")
    with pytest.raises(InputTooLong) as error:
        encode(Sample(prompt="a " * 40, response="b"))
    assert error.value.details["limit"] == 30
    assert error.value.details["n"] > 30
    assert str(error.value.details["n"]) in error.value.message


def test_a_prompt_of_megabytes_is_cut_before_it_is_tokenised():
    encode, _ = encoder()
    short = encode(Sample(prompt="word " * 3_000, response="b"))
    long = encode(Sample(prompt="word " * 3_000_000, response="b"))
    assert long.truncated
    assert long.ids == short.ids


def test_a_response_of_megabytes_is_refused_with_both_numbers():
    encode, _ = encoder()
    with pytest.raises(InputTooLong) as error:
        encode(Sample(prompt="a", response="b" * 10_000_000))
    assert error.value.details["limit"] == 200
    assert error.value.details["n"] > 200


def test_rendered_text_and_ids_are_cut_at_the_same_place_as_messages():
    encode, tokenizer = encoder()
    messages = (Message("user", "a " * 50), Message("assistant", "b"))
    whole = encode(Sample(messages=messages))
    cut = at_most(encode, 20)(Sample(messages=messages))
    assert at_most(encode, 20)(Sample(text=rendered(tokenizer, messages))) == cut
    assert at_most(encode, 20)(Sample(input_ids=whole.ids)) == cut


# -- errors -----------------------------------------------------------------------------------------------------------


def test_each_bad_sample_has_its_own_code():
    encode, _ = encoder()
    cases = {
        "empty_response": Sample(prompt="a", response=""),
        "empty_prompt": Sample(prompt="", response="a"),
        "invalid_text": Sample(prompt="a", response="b\ud800"),
        "token_out_of_vocabulary": Sample(input_ids=(5, 320)),
        "invalid_messages": Sample(messages=(Message("robot", "a"), Message("assistant", "b"))),
        "input_too_long": Sample(prompt="a", response="b " * 400),
    }
    for code, sample in cases.items():
        with pytest.raises(Exception) as error:  # noqa: PT011  (the code is what is tested)
            encode(sample)
        assert error.value.code == code


@pytest.mark.parametrize(
    ("sample", "error"),
    [
        (Sample(prompt=(), response="b"), InvalidMessages),
        (Sample(messages=(Message("user", "a"),)), InvalidMessages),
        (Sample(messages=(Message("user", "a"), Message("assistant", ""))), EmptyResponse),
        (Sample(prompt=(Message("user", ""),), response="b"), EmptyPrompt),
        (Sample(prompt="a", response="<|im_end|>"), EmptyResponse),
        (Sample(text=""), EmptyResponse),
        (Sample(text="<|im_end|>"), EmptyResponse),
        (Sample(text="<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"), EmptyResponse),
        (Sample(text="a\udfff"), InvalidText),
        (Sample(input_ids=()), EmptyResponse),
        (Sample(input_ids=(END,)), EmptyResponse),
        (Sample(input_ids=(-1, 5)), TokenOutOfVocabulary),
    ],
)
def test_what_cannot_be_scored_is_refused(sample, error):
    encode, _ = encoder()
    with pytest.raises(error):
        encode(sample)


def test_a_template_that_refuses_the_order_of_roles_is_the_samples_error():
    encode, _ = encoder(STRICT_LLAMA3, bos="<s>")
    with pytest.raises(InvalidMessages, match="roles must alternate"):
        encode(Sample(messages=(Message("user", "a"), Message("user", "b"), Message("assistant", "c"))))


def test_error_messages_never_hold_the_text():
    encode, _ = encoder()
    marker = "xyzzy"
    for sample in (
        Sample(prompt=marker, response=""),
        Sample(prompt=marker, response=marker * 9000),
        Sample(messages=(Message(marker, marker), Message("assistant", marker))),
        Sample(prompt="a", response=marker + "\ud800"),
    ):
        with pytest.raises(Exception) as error:  # noqa: PT011
            encode(sample)
        assert marker not in str(error.value)


def test_a_tokenizer_that_cannot_end_a_turn_is_refused():
    tokenizer = tiny_tokenizer(None)
    tokenizer.eos_token = None
    with pytest.raises(EncodingPolicyError):
        infer_policy(tokenizer, max_tokens=10, vocab_size=320, rule=LAYOUT_RULES["language_model"])


def test_the_digest_of_a_tokenizer_follows_its_vocabulary_and_nothing_that_is_unused():
    a, b = tiny_tokenizer(), tiny_tokenizer()
    assert tokenizer_digest(a) == tokenizer_digest(b)
    a(["x", "yyy"], padding=True, truncation=True, max_length=3)
    assert tokenizer_digest(a) == tokenizer_digest(b)
    b.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    assert tokenizer_digest(a) != tokenizer_digest(b)


def test_many_threads_encode_as_one_does():
    from concurrent.futures import ThreadPoolExecutor

    encode, _ = encoder()
    samples = [Sample(prompt=f"question {i}", response="answer " * (i % 13 + 1)) for i in range(200)]
    expected = [at_most(encode, 90)(s) for s in samples]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(at_most(encode, 90), samples)) == expected


# -- what a wire format may ask for -----------------------------------------------------------------------------------

EMPTY = SampleOptions(scores_empty=True)


@pytest.mark.parametrize("make", [encoder, bos_encoder], ids=["chatml", "bos"])
def test_an_empty_response_can_be_scored_at_its_end_token_if_the_wire_format_asks_for_it(make):
    encode, tokenizer = make()
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    expected = encode(Sample(prompt="Hi", response="x"))
    pair = encode(Sample(prompt="Hi", response="", options=EMPTY))
    assert pair.ids == (*expected.ids[: expected.n_prompt], END)
    assert pair.n_prompt == expected.n_prompt
    for text in (prompt, prompt + encode.policy.end_text):
        assert encode(Sample(text=text, options=EMPTY)) == pair
    assert encode(Sample(input_ids=pair.ids, options=EMPTY)) == pair


@pytest.mark.parametrize(
    "sample",
    [
        Sample(prompt="Hi", response="", finish_reason="length", options=EMPTY),
        Sample(text="", options=EMPTY),
        Sample(input_ids=(), options=EMPTY),
        Sample(prompt="Hi", response=""),
    ],
)
def test_where_there_is_not_even_an_end_token_nothing_is_scored(sample):
    encode, _ = encoder()
    with pytest.raises(EmptyResponse):
        encode(sample)


def test_a_caller_may_set_a_lower_limit_but_no_higher_one():
    encode, _ = encoder(max_tokens=60)
    long = "word " * 40
    assert len(encode(Sample(prompt=long, response="Yes.", options=SampleOptions(max_tokens=30))).ids) == 30
    assert len(encode(Sample(prompt=long, response="Yes.", options=SampleOptions(max_tokens=10_000))).ids) == 60
    with pytest.raises(InputTooLong) as refused:
        encode(Sample(prompt="Hi", response=long, options=SampleOptions(max_tokens=30)))
    assert refused.value.details["limit"] == 30


def test_a_caller_may_forbid_that_anything_is_cut():
    encode, _ = encoder(max_tokens=60)
    sample = Sample(prompt="word " * 40, response="Yes.")
    assert encode(sample).truncated
    with pytest.raises(InputTooLong):
        encode(replace(sample, options=SampleOptions(truncates=False)))


def test_a_begin_of_the_response_that_the_caller_gives_is_used():
    encode, tokenizer = encoder()
    text = rendered(tokenizer)
    n = text.index("Four")
    assert encode(Sample(text=text, n_prompt_chars=n)) == encode(Sample(text=text))
    # The response quotes the template: only the caller can tell.
    forged = text[:n] + "Or: <|im_end|>\n<|im_start|>assistant\nFour<|im_end|>"
    assert encode(Sample(text=forged, n_prompt_chars=n)).n_prompt == encode(Sample(text=text)).n_prompt
    assert encode(Sample(text=forged)).n_prompt > encode(Sample(text=text)).n_prompt


@pytest.mark.parametrize("make", [encoder, bos_encoder], ids=["chatml", "bos"])
def test_whoever_looks_at_texts_sees_prompt_and_response_without_the_ending(make):
    encode, tokenizer = make()
    text = rendered(tokenizer)
    prompt, response = encode.texts(Sample(text=text))
    assert response == CHAT[1].content
    assert prompt + response == text[: len(prompt + response)]
    assert CHAT[0].content in prompt
    assert encode.texts(Sample(text="nobody knows")) == ("", "")
    assert encode.texts(Sample(text="a prompt and an answer", n_prompt_chars=9)) == ("a prompt ", "and an answer")
    assert encode.texts(Sample(prompt="Hi", response="Yo" + encode.policy.end_text)) == ("Hi", "Yo")
    assert encode.texts(Sample(input_ids=(5, 6))) == ("", "")


def test_a_prompt_that_ends_where_the_template_begins_a_response_is_rendered():
    encode, tokenizer = encoder()
    turns = [{"role": "user", "content": "Hi"}]
    assert encode.is_rendered(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    assert not encode.is_rendered("Hi")


# -- turns that plain text can imitate --------------------------------------------------------------------------------

PLAIN_TURNS = {
    "llama 2": "{% for m in messages %}{% if m['role'] == 'user' %}<s>[INST] {{ m['content'] }} [/INST]{% else %} "
    "{{ m['content'] }} <|im_end|>{% endif %}{% endfor %}",
    "zephyr": "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}",
    "alpaca": "{% for m in messages %}{% if m['role'] == 'user' %}### Instruction:\n{{ m['content'] }}\n\n{% else %}"
    "### Response:\n{{ m['content'] }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}### Response:\n{% endif %}",
    "names": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}",
}
MARKS = {"llama 2": "[/INST]", "zephyr": "<|assistant|>", "alpaca": "### Response:", "names": "assistant:"}


@pytest.mark.parametrize("name", PLAIN_TURNS)
def test_a_template_that_begins_turns_with_plain_text_is_noted(name):
    encode, _ = encoder(PLAIN_TURNS[name])
    (note,) = encode.notes
    assert MARKS[name] in note


def test_a_template_whose_turns_begin_with_control_tokens_is_not():
    thinking = CHATML.replace(
        "<|im_start|>assistant\n{% endif", "<|im_start|>assistant\n<think>\n\n</think>\n\n{% endif"
    )
    for template in (CHATML, thinking, None):
        assert encoder(template)[0].notes == ()

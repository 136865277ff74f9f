"""Each clause of the encoder in small: rows of tiny tokenizers written out by hand, refusals and notes word for word."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import pytest
from tokenizers import decoders
from tokenizers.processors import TemplateProcessing

from rewardserve.model.conversation import (
    SCORE_EMPTY_OPTIONS,
    EmptyResponse,
    InputTooLong,
    InvalidMessages,
    InvalidText,
    Message,
    Sample,
    SampleError,
    SampleOptions,
    TokenOutOfVocabulary,
)
from rewardserve.model.encoding import (
    Encoded,
    Encoder,
    _begin,
    _begin_of_response,
    _Draft,
    _joined,
    _n_until,
    _n_without,
    _Prompt,
    _rfind,
    _text_around_contents,
)
from rewardserve.model.layout_rules import LAYOUT_RULES
from rewardserve.model.templates.chat_template import ChatTemplate, ConversationTooSlow, EncodingPolicyError
from rewardserve.model.tokenization.encoding_policy import infer_policy
from tests.support.tiny import CHATML, LLAMA3_LIKE, tiny_tokenizer
from tests.unit.model.test_encoding_policy import BARE, CLOSED, VARYING, letters, turns
from tests.unit.model.test_llama_factory_slots import marks_the_first, written

TEXT_END, START, END, BOS, PAD = range(5)
NEWLINE = 203
CLASSIFIER = "sequence_classification"
PLAIN = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
OVER = CHATML.replace("<|im_end|>\n{% endfor", "<|im_end|> over\n{% endfor")
THINKS = CHATML.replace("assistant\n{% endif", "assistant\n<think>{% endif")


def encoder(
    tokenizer,
    layout: str = "language_model",
    *,
    max_tokens: int = 400,
    vocab_size: int = 320,
    memo: int = 10_000,
    **more,
):
    rule = more.pop("rule", LAYOUT_RULES[layout])
    policy = infer_policy(tokenizer, max_tokens=max_tokens, vocab_size=vocab_size, rule=rule, **more)
    return Encoder(tokenizer, policy, memo_chars=memo)


def ids(tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer._tokenizer.encode(text, add_special_tokens=False).ids)


def named(tokenizer, tokens: Iterable[str]) -> tuple[int, ...]:
    return tuple(tokenizer.convert_tokens_to_ids(list(tokens)))


def rendered(tokenizer, talk, *, asked: bool = False) -> str:
    if not tokenizer.chat_template:
        return "".join(m.content for m in talk)
    turns_ = [{"role": m.role, "content": m.content} for m in talk]
    return tokenizer.apply_chat_template(turns_, tokenize=False, add_generation_prompt=asked)


# -- all forms, layouts and pad tokens -----------------------------------------------------------------------------------

ENDINGS = {
    "chatml": (CHATML, "<|im_end|>\n", {"language_model": "<|im_end|>", CLASSIFIER: "<|im_end|>\n", "openrlhf": "<|im_end|>",
                                        "trl_value_head": "<|im_end|>\n"}),
    "closed": (CLOSED, "<|im_end|>", dict.fromkeys(("language_model", CLASSIFIER, "openrlhf", "trl_value_head"), "<|im_end|>")),
    "BOS": (LLAMA3_LIKE, "<|im_end|>", dict.fromkeys(("language_model", CLASSIFIER, "openrlhf", "trl_value_head"), "<|im_end|>")),
    "text": (PLAIN, "\n\n", {"language_model": "<|im_end|>", CLASSIFIER: "\n\n", "openrlhf": " <|im_end|>",
                             "trl_value_head": "\n\n<|im_end|>"}),
    "text behind the end": (OVER, "<|im_end|> over\n", {"language_model": "<|im_end|>", CLASSIFIER: "<|im_end|> over\n",
                                                        "openrlhf": "<|im_end|> over <|im_end|>",
                                                        "trl_value_head": "<|im_end|> over\n"}),
    "none": (None, "", {"language_model": "<|im_end|>", CLASSIFIER: "<|im_end|>", "openrlhf": " <|im_end|>",
                        "trl_value_head": "<|im_end|>"}),
}  # fmt: skip
CASES = [(name, layout) for name, (_, _, ends) in ENDINGS.items() for layout in ends]
PADDED = [
    (*case, pad) for case in CASES for pad in (None, PAD, END, 5, NEWLINE) if pad is None or case[1] == CLASSIFIER
]
USER = Message("user", "What is two plus two?")


@pytest.mark.parametrize("response", ["Four.", "Great!!!", "\n It is \t four "])
@pytest.mark.parametrize(("name", "layout", "pad"), PADDED)
def test_all_forms_of_a_sample_end_as_the_layouts_trainer_ends_them(name, layout, pad, response):
    template, tail, ends = ENDINGS[name]
    tokenizer = tiny_tokenizer(template, bos="<s>" if name == "BOS" else None)
    encode = encoder(tokenizer, layout, pad_id=pad)
    talk = (USER, Message("assistant", response))
    whole = rendered(tokenizer, talk)
    body = whole.removesuffix(tail)
    row = ids(tokenizer, body + ends[layout])
    while pad is not None and row[-1] == pad:
        row = row[:-1]
    prompt = rendered(tokenizer, talk[:1], asked=True)
    n_prompt = len(ids(tokenizer, prompt))
    known = n_prompt if template else 0
    expected = Encoded(row, known)
    assert encode(Sample(messages=talk)) == Encoded(row, n_prompt)
    assert encode(Sample(prompt=USER.content, response=response)) == Encoded(row, n_prompt)
    assert encode(Sample(text=body)) == expected
    assert encode(Sample(text=body + ends[layout])) == expected
    assert encode(Sample(text=body, n_prompt_chars=len(prompt))) == Encoded(row, n_prompt)
    assert encode(Sample(input_ids=ids(tokenizer, body + ends[layout]))) == expected
    if response != "Great!!!" or pad != 5:
        assert encode(Sample(input_ids=ids(tokenizer, body))) == expected
    if template and (name, layout) != ("text", "language_model"):  # there plain text is no ending
        assert encode(Sample(text=whole)) == expected
        assert encode(Sample(input_ids=ids(tokenizer, whole))) == expected
    if pad in (PAD, END) or (pad is not None and "<|im_end|>" in ends[layout] and name != "text behind the end"):
        assert encode(Sample(text=body + ends[layout] + tokenizer.decode([pad]) * 3)) == expected
        assert encode(Sample(input_ids=(*ids(tokenizer, body + ends[layout]), pad, pad, pad))) == expected
    assert encode.texts(Sample(text=body)) == ((prompt, response) if template else ("", ""))
    assert encode.texts(Sample(text=body + ends[layout])) == ((prompt, response) if template else ("", ""))
    assert encode.texts(Sample(prompt=USER.content, response=response)) == (USER.content, response)


@pytest.mark.parametrize(("name", "layout"), CASES)
def test_all_forms_of_a_response_that_was_cut_off_have_no_end(name, layout):
    template, tail, _ = ENDINGS[name]
    tokenizer = tiny_tokenizer(template, bos="<s>" if name == "BOS" else None)
    encode = encoder(tokenizer, layout)
    talk = (USER, Message("assistant", "It is\n"))
    body = rendered(tokenizer, talk).removesuffix(tail)
    n_prompt = len(ids(tokenizer, rendered(tokenizer, talk[:1], asked=True)))
    for sample in (
        Sample(messages=talk, finish_reason="length"),
        Sample(text=body, finish_reason="length"),
        Sample(input_ids=ids(tokenizer, body), finish_reason="length"),
    ):
        encoded = encode(sample)
        assert encoded.ids == ids(tokenizer, body)
        assert encoded.missing_end
        assert encoded.n_prompt == (n_prompt if template or sample.messages else 0)
    if "<|im_end|>" in tail:
        for closed in (Sample(text=body + tail + " "), Sample(input_ids=ids(tokenizer, body + tail))):
            assert encode(replace(closed, finish_reason="length")) == encode(closed)
            assert not encode(closed).missing_end


# -- ids whose tokens reach over the beginning of the ending ------------------------------------------------------------


def straddling(*merges: tuple[str, str], tail: str, layout: str, **more):
    tokenizer = letters(*merges, template=turns(tail))
    return tokenizer, encoder(tokenizer, layout, **more)


@pytest.mark.parametrize("fuses", [True, False], ids=["decoder", "spaces between tokens"])
@pytest.mark.parametrize(
    ("merge", "tail", "layout", "row"),
    [
        ("e\n", "\n", CLASSIFIER, ("a", "e\n")),
        ("e\n", "\n", "trl_value_head", ("a", "e\n", "</s>")),
        ("e#", "##\n", CLASSIFIER, ("a", "e#", "#", "\n")),
        ("e ", "", "openrlhf", ("a", "e ", "</s>")),
        ("e ", " </s>", CLASSIFIER, ("a", "e ", "</s>")),
    ],
)
def test_an_ending_that_is_one_token_with_the_end_of_a_response_is_left_as_it_is(merge, tail, layout, row, fuses):
    tokenizer, encode = straddling((merge[0], merge[1]), tail=tail, layout=layout)
    if not fuses and "</s>" in row:  # else nothing tells its spaces from those of the text
        tokenizer._tokenizer.decoder = decoders.Replace("", "")
    given = named(tokenizer, row)
    assert encode(Sample(input_ids=given)) == Encoded(given, 0)
    assert encode(Sample(input_ids=given, finish_reason="length")) == Encoded(given, 0)
    bare = named(tokenizer, ("a", "e"))
    assert encode(Sample(input_ids=bare)).ids == bare + encode.policy.end_ids
    assert encode(Sample(input_ids=bare, finish_reason="length")) == Encoded(bare, 0, missing_end=True)


@pytest.mark.parametrize("rest", ["", "#"])
def test_padding_behind_such_an_ending_is_left_out(rest):
    tokenizer = letters(("e", "#"), template=turns(f"#{rest}<s>"))
    pad = named(tokenizer, ("<s>",))[0]
    encode = encoder(tokenizer, CLASSIFIER, pad_id=pad)
    given = named(tokenizer, ("a", "e#", *rest))
    for finish in ("stop", "length"):
        for n in (1, 2, 3):
            assert encode(Sample(input_ids=(*given, *[pad] * n), finish_reason=finish)) == Encoded(given, 0)
            ends = named(tokenizer, ("a", "#", *rest))
            assert encode(Sample(input_ids=(*ends, *[pad] * n), finish_reason=finish)) == Encoded(ends, 0)
    bare = named(tokenizer, ("a", "e"))
    assert encode(Sample(input_ids=bare)).ids == (*bare, *named(tokenizer, "#" + rest))
    assert encode(Sample(input_ids=bare, finish_reason="length")) == Encoded(bare, 0, missing_end=True)


def test_every_beginning_of_an_ending_closes_a_row_from_its_control_token_on():
    tokenizer = letters(template=turns("</s>abc"))
    encode = encoder(tokenizer, CLASSIFIER)
    whole = named(tokenizer, ("x", "</s>", "a", "b", "c"))
    for n in range(1, 6):
        assert encode(Sample(input_ids=whole[:n])).ids == whole
        assert encode(Sample(input_ids=whole[:n], finish_reason="length")).missing_end is (n == 1)
    assert encode(Sample(input_ids=(*whole[:3], *named(tokenizer, " \n")))).ids == whole


def test_plain_text_that_the_template_ends_with_is_no_second_time_written_and_closes_nothing():
    tokenizer = letters(template=turns("##"))
    encode = encoder(tokenizer, "trl_value_head")
    row = named(tokenizer, ("x", "#", "#", "</s>"))
    assert encode(Sample(input_ids=row[:3])) == Encoded(row, 0)
    assert encode(Sample(text="x##")) == Encoded(row, 0)
    assert encode(Sample(input_ids=row[:3], finish_reason="length")) == Encoded(row[:1], 0, missing_end=True)
    assert encode(Sample(text="x##", finish_reason="length")) == Encoded(row[:1], 0, missing_end=True)
    classifier = encoder(tokenizer, CLASSIFIER)
    for sample in (Sample(input_ids=row[:3], finish_reason="length"), Sample(text="x##", finish_reason="length")):
        assert classifier(sample) == Encoded(row[:3], 0), "there it is all of the ending"
    mine = encoder(tokenizer, "language_model")
    assert mine(Sample(input_ids=row[:3])).ids == row, "there EOS comes after it"


def test_newlines_are_removed_as_openrlhf_does_and_nothing_else_is():
    tokenizer = letters(template=turns("\n"))
    encode = encoder(tokenizer, "openrlhf")
    end = named(tokenizer, (" ", "</s>"))
    for text in ("x\n\n\n", "x \n", "X", "x\t"):
        body = named(tokenizer, text.rstrip("\n"))
        assert encode(Sample(input_ids=named(tokenizer, text))).ids == body + end
        assert encode(Sample(text=text)).ids == body + end
        assert encode(Sample(prompt="p", response=text)).ids == named(tokenizer, "p|") + body + end
        assert encode(Sample(prompt="p", response=text, finish_reason="length")).ids == named(tokenizer, "p|" + text)


def test_ids_of_a_template_whose_ending_varies_are_closed_as_openrlhf_closes_text():
    tokenizer = letters(("<", "/"), ("s", ">"), template=VARYING["a full stop"])
    encode = encoder(tokenizer, "openrlhf")
    end = named(tokenizer, (" ", "</s>"))
    for text in ("x", "X", "x\n\n", "x\t", "Is."):
        given = named(tokenizer, text)
        assert encode(Sample(input_ids=given)).ids == named(tokenizer, text.rstrip("\n")) + end
        assert encode(Sample(input_ids=given, finish_reason="length")) == Encoded(given, 0, missing_end=True)
    closed = named(tokenizer, ("x", "</s>"))
    assert encode(Sample(input_ids=(*closed, *named(tokenizer, "\n")))).ids == closed
    quoted = named(tokenizer, ("x", "</", "s>"))
    assert encode(Sample(input_ids=quoted)).ids == quoted + end
    assert encoder(tokenizer, CLASSIFIER)(Sample(input_ids=quoted)).ids == quoted


@pytest.mark.parametrize("finish", ["stop", "length"])
def test_padding_closes_a_row_whose_ending_ends_in_it(finish):
    tokenizer = letters(template=turns("#<s>"))
    pad = named(tokenizer, ("<s>",))[0]
    encode = encoder(tokenizer, CLASSIFIER, pad_id=pad)
    row = named(tokenizer, "ab#")
    for closed in ("ab#<s>", "ab#<s><s>", "ab<s><s>"):
        assert encode(Sample(text=closed, finish_reason=finish)) == Encoded(row, 0)
        assert encode(Sample(input_ids=ids(tokenizer, closed), finish_reason=finish)) == Encoded(row, 0)
    own, end = row, named(tokenizer, "#")
    for sample in (Sample(text="ab#", finish_reason=finish), Sample(input_ids=row, finish_reason=finish)):
        expected = Encoded(own, 0, missing_end=True) if finish == "length" else Encoded(own + end, 0)
        assert encode(sample) == expected, "without padding it is the response's"


def test_padding_that_ends_no_turn_closes_none():
    tokenizer = letters(template=turns("</s>"))
    row = named(tokenizer, "ab")
    for pad_id, missing in ((tokenizer.eos_token_id, False), (tokenizer.bos_token_id, True)):
        encode = encoder(tokenizer, CLASSIFIER, pad_id=pad_id)
        for given in ((*row, pad_id), (*row, pad_id, pad_id)):
            for sample in (Sample(text=tokenizer.decode(given)), Sample(input_ids=given)):
                assert encode(replace(sample, finish_reason="length")) == Encoded(row, 0, missing_end=missing)


@pytest.mark.parametrize(("layout", "end"), [("openrlhf", (" ", "</s>")), (CLASSIFIER, ("#", "<s>"))])
def test_a_row_that_has_nothing_between_its_prompt_and_its_ending_is_empty(layout, end):
    tokenizer = letters(template=turns("\n" if layout == "openrlhf" else "#<s>"))
    encode = encoder(tokenizer, layout, pad_id=named(tokenizer, ("<s>",))[0])
    for n in range(1, 4):
        prompt = named(tokenizer, "a" * n + "|")
        with pytest.raises(EmptyResponse):
            encode(Sample(input_ids=(*prompt, *named(tokenizer, end))))


def test_an_ending_of_plain_text_is_compared_with_its_spaces():
    tokenizer = letters(template=turns(" #"))
    encode = encoder(tokenizer, CLASSIFIER)
    row = named(tokenizer, ("<s>", *"abc#"))
    assert encode(Sample(input_ids=row)).ids == (*row, *named(tokenizer, " #"))


def test_white_space_of_an_ending_in_plain_text_may_be_left_out():
    tokenizer = letters(template=turns("##\n"))
    row = named(tokenizer, "x##\n")
    eos = tokenizer.eos_token_id
    for text in ("x##\n", "x##", "x## "):
        classify, encode = encoder(tokenizer, CLASSIFIER), encoder(tokenizer, "trl_value_head")
        for finish in ("stop", "length"):
            assert classify(Sample(text=text, finish_reason=finish)) == Encoded(row, 0)
        assert classify(Sample(input_ids=ids(tokenizer, text))) == Encoded(row, 0)
        assert encode(Sample(text=text)) == Encoded((*row, eos), 0)
        assert encode(Sample(input_ids=ids(tokenizer, text))) == Encoded((*row, eos), 0)
        assert encode(Sample(text=text, finish_reason="length")) == Encoded(row[:1], 0, missing_end=True)
        assert encode(Sample(input_ids=ids(tokenizer, text), finish_reason="length")).missing_end


# -- ids ----------------------------------------------------------------------------------------------------------------


def test_ids_must_have_rows():
    encode = encoder(tiny_tokenizer())
    for given, at, token in (((5, -1, 320), 1, -1), ((0, 5, 320), 2, 320), ((1, 319, 400), 2, 400), ((-2,), 0, -2)):
        with pytest.raises(TokenOutOfVocabulary) as refused:
            encode(Sample(input_ids=given))
        assert refused.value.message == f"input_ids[{at}] is {token}; the vocabulary has 320 tokens"
        assert refused.value.details == {"index": at, "id": token, "vocab_size": 320}
    assert encode(Sample(input_ids=(0, 319))).ids == (0, 319, END)


def test_no_ids_are_no_response():
    with pytest.raises(EmptyResponse) as refused:
        encoder(tiny_tokenizer())(Sample(input_ids=()))
    assert refused.value.message == "input_ids is empty: there is no token to read a score at"


def test_a_row_of_nothing_but_padding_is_read_at_its_first_token():
    encode = encoder(tiny_tokenizer(), CLASSIFIER, pad_id=PAD)
    for n in (1, 2, 3):
        assert encode(Sample(input_ids=(PAD,) * n)) == Encoded((PAD,), 0)
    assert encode(Sample(input_ids=(PAD, 5, PAD))).ids == (PAD, 5, END, NEWLINE)
    assert encoder(tiny_tokenizer(), CLASSIFIER)(Sample(input_ids=(PAD, PAD))).ids == (PAD, PAD, END, NEWLINE)
    text = encoder(tiny_tokenizer(), CLASSIFIER, pad_id=5)
    assert text(Sample(input_ids=(5, 5))).ids == (5, 5, END, NEWLINE), "an exclamation mark is text"


def test_the_response_of_a_row_begins_behind_the_last_beginning_of_one():
    tokenizer = tiny_tokenizer(THINKS)
    encode = encoder(tokenizer)
    opening = "<|im_end|>\n<|im_start|>assistant\n"
    assert encode.policy.response_start == opening + "<think>"
    for text in (
        f"<|im_start|>user\na{opening}b<|im_end|>\n<|im_start|>user\nc{opening}<think>d",
        f"<|im_start|>user\na{opening}<think>b<|im_end|>\n<|im_start|>user\nc{opening}d",
        f"{opening}d",
        f"{opening}<think>d",
    ):
        row = ids(tokenizer, text + "<|im_end|>")
        n_prompt = len(row) - 1 - len(ids(tokenizer, "d"))
        assert encode(Sample(input_ids=row)) == Encoded(row, n_prompt)
        assert encode(Sample(text=text)) == Encoded(row, n_prompt)
        assert encode.texts(Sample(text=text)) == (text[:-1], "d")
    for text in ("a", "assistant\nd"):
        assert encode(Sample(input_ids=ids(tokenizer, text))).n_prompt == 0
        assert encode.texts(Sample(text=text)) == ("", "")


@pytest.mark.parametrize("refused", ["messages | length > 3", "messages[0]['role'] == 'system'"])
def test_the_response_begins_where_a_template_that_takes_not_all_conversations_begins_one(refused):
    template = "{% if " + refused + " %}{{ raise_exception('no') }}{% endif %}" + THINKS
    encode = encoder(tiny_tokenizer(template))
    opening = "<|im_end|>\n<|im_start|>assistant\n"
    assert encode.texts(Sample(text=f"a{opening}<think>b")) == (f"a{opening}<think>", "b")
    shows_both = "system" in refused
    assert encode.texts(Sample(text=f"a{opening}b")) == ((f"a{opening}", "b") if shows_both else ("", ""))
    assert encode.texts(Sample(text="aXXXXb")) == ("", "")


@pytest.mark.parametrize("response", ["", " ", "\n\n\n", "\u3000\u3000\u3000", "\n" * 50])
def test_a_row_whose_response_is_blank_is_refused_unless_the_caller_knows_no_other_word(response):
    tokenizer = tiny_tokenizer(PLAIN)
    encode = encoder(tokenizer)
    text = f"user: a\n\nassistant: {response}"
    for sample in (Sample(input_ids=ids(tokenizer, text)), Sample(text=text), Sample(text=text, n_prompt_chars=20)):
        with pytest.raises(EmptyResponse) as refused:
            encode(sample)
        assert refused.value.message == "the response is empty, or white space alone: there is nothing to score"
        assert encode(replace(sample, options=SCORE_EMPTY_OPTIONS)).ids == (*ids(tokenizer, text), END)
        with pytest.raises(EmptyResponse):
            encode(replace(sample, options=SCORE_EMPTY_OPTIONS, finish_reason="length"))
    blank = Sample(input_ids=ids(tokenizer, response or " "), options=SCORE_EMPTY_OPTIONS)
    for each in (
        blank,
        Sample(text=response, options=SCORE_EMPTY_OPTIONS),
        Sample(text=response, n_prompt_chars=0, options=SCORE_EMPTY_OPTIONS),
    ):
        with pytest.raises(EmptyResponse):
            encode(each)


def test_a_response_that_is_not_blank_is_scored():
    tokenizer = tiny_tokenizer(CHATML)
    encode = encoder(tokenizer)
    prompt = ids(tokenizer, "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n")
    for response in ("\n" * 12 + "x", "\ufffd", "X", "<|im_start|>", "<s>", "\u3000\u3000\u3000x"):
        given = (*prompt, *ids(tokenizer, response), END)
        assert encode(Sample(input_ids=given)) == Encoded(given, len(prompt))


def test_the_beginning_of_a_response_may_be_one_token_with_what_stands_before_it():
    tokenizer = letters((":", " "), (":", "x"), template="{% for m in messages %}{{ m['role'] + ':' + m['content'] + '|' }}"
                        "{% endfor %}{{ 'assistant:' if add_generation_prompt }}")  # fmt: skip
    encode = encoder(tokenizer)
    assert encode.policy.response_start == "|assistant:"
    head = named(tokenizer, "user:a|assistant")
    for blank in (": ", ":"):
        with pytest.raises(EmptyResponse):
            encode(Sample(input_ids=(*head, *named(tokenizer, (blank,)))))
        with pytest.raises(EmptyResponse):
            encode(Sample(input_ids=(*head, *named(tokenizer, (blank, "\n", " ")))))
    row = (*head, *named(tokenizer, (":x",)))
    assert encode(Sample(input_ids=row)) == Encoded((*row, *named(tokenizer, ("|", "</s>"))), 0)


def test_the_white_space_that_begins_a_response_may_be_one_token_with_more_of_it():
    between = "{% for m in messages %}{{ m['content'] + ('' if loop.last else '|\n') }}{% endfor %}"
    template = between + "{{ '|\n' if add_generation_prompt }}"
    tokenizer = letters(("\n", " "), template=template)
    encode = encoder(tokenizer)
    assert encode.policy.response_start == "|\n"
    for blank in ("\n", "\n ", "\n \n"):
        with pytest.raises(EmptyResponse):
            encode(Sample(input_ids=ids(tokenizer, "a|" + blank)))
    assert encode(Sample(input_ids=ids(tokenizer, "a|\n b"))).ids == (*ids(tokenizer, "a|\n b"), tokenizer.eos_token_id)


def test_a_response_begins_behind_what_is_written_before_one_that_is_to_come():
    between = "{% for m in messages %}{{ ('' if loop.first else '|#') + m['content'] }}{% endfor %}"
    template = between + "{{ '|' if add_generation_prompt }}"
    tokenizer = letters(template=template)
    encode = encoder(tokenizer)
    row = (*named(tokenizer, "a|#b"), tokenizer.eos_token_id)
    samples = (Sample(prompt="a", response="b"), Sample(text="a|#b"), Sample(input_ids=row))
    assert [encode(sample) for sample in samples] == [Encoded(row, 2)] * 3
    assert encode.texts(Sample(text="a|#b")) == ("a|", "#b")


# -- the beginning ------------------------------------------------------------------------------------------------------


def starting(*start: str):
    """Rows without a template begin with these."""
    tokenizer = letters()
    made = tokenizer._tokenizer
    made.post_processor = TemplateProcessing(
        single=" ".join([*start, "$A"]), special_tokens=[(token, made.token_to_id(token)) for token in set(start)]
    )
    return tokenizer, encoder(tokenizer)


@pytest.mark.parametrize("start", [("<s>",), ("<s>", "<s>"), ("</s>", "<s>"), ()])
def test_what_begins_a_row_is_there_once(start):
    tokenizer, encode = starting(*start)
    due, rest = named(tokenizer, start), named(tokenizer, ("x", "y"))
    unit = due[:1] if len(set(due)) == 1 else due
    for n in range(4):
        given = unit * n + rest
        encoded = encode(
            Sample(text="".join(start[: len(unit)]) * n + "xy", n_prompt_chars=len("".join(start[: len(unit)]) * n) + 1)
        )
        assert encoded == Encoded((*due, *rest, tokenizer.eos_token_id), len(due) + 1)
        assert encode(Sample(input_ids=given)).ids == (*due, *rest, tokenizer.eos_token_id)
    assert encode(Sample(prompt="x", response="y")) == Encoded((*due, *rest, tokenizer.eos_token_id), len(due) + 1)


def test_a_rendering_begins_as_the_template_has_written_it():
    tokenizer = letters(template="{{ '' if messages[0]['role'] == 'system' else bos_token }}" + turns("</s>"))
    encode = encoder(tokenizer)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    talk = (Message("user", "a"), Message("assistant", "b"))
    assert encode(Sample(messages=talk)).ids == (bos, *named(tokenizer, "a|b"), eos)
    assert encode(Sample(messages=(Message("system", "s"), *talk))).ids == (*named(tokenizer, "s|a|b"), eos)


def test_a_prompt_shorter_than_what_is_taken_off_is_no_negative_prompt():
    tokenizer, encode = starting("<s>")
    bos, other = named(tokenizer, ("<s>", "y"))
    assert encode._with_start(Encoded((bos, bos, bos, other), 1), adds_start=True) == Encoded((bos, other), 1)
    assert encode._with_start(Encoded((other,), 0), adds_start=False) == Encoded((other,), 0)


# -- length -------------------------------------------------------------------------------------------------------------


def test_the_limit_is_the_lower_of_two():
    encode = encoder(letters(), max_tokens=5)
    assert [encode._limit(SampleOptions(max_tokens=n)) for n in (None, 4, 6)] == [5, 4, 5]
    assert encode._truncates(SampleOptions())
    assert not encode._truncates(SampleOptions(truncates=False))
    assert not encoder(letters(), truncation="error")._truncates(SampleOptions())


def test_a_row_is_cut_from_the_left_of_its_prompt_to_the_limit_and_no_further():
    tokenizer = letters()
    encode = encoder(tokenizer, max_tokens=5)
    eos = tokenizer.eos_token_id
    assert encode(Sample(prompt="ab", response="cd")) == Encoded((*named(tokenizer, "abcd"), eos), 2)
    assert encode(Sample(prompt="abc", response="cd")) == Encoded((*named(tokenizer, "bccd"), eos), 2, truncated=True)
    assert encode(Sample(prompt="abc", response="cdef")) == Encoded((*named(tokenizer, "cdef"), eos), 0, truncated=True)
    for sample, n, what in (
        (Sample(prompt="abc", response="cdefg"), 6, "response"),
        (Sample(text="abcdefg"), 8, "sample"),
        (Sample(prompt="abc", response="cd", options=SampleOptions(truncates=False)), 6, "sample"),
        (Sample(prompt="abc", response="cd", options=SampleOptions(max_tokens=2)), 3, "response"),
    ):
        with pytest.raises(InputTooLong) as refused:
            encode(sample)
        limit = 2 if sample.options.max_tokens else 5
        assert refused.value.message == f"the {what} has {n} tokens; the limit is {limit}"
        assert refused.value.details == {"n": n, "limit": limit}


def test_what_a_row_begins_with_is_kept_where_its_prompt_is_cut():
    tokenizer = letters(template="{{ bos_token }}" + turns("|"))
    encode = encoder(tokenizer, max_tokens=6)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    cut = encode(Sample(prompt="abcd", response="ef"))
    assert cut == Encoded((bos, *named(tokenizer, "|ef|"), eos), 2, truncated=True)
    assert cut.response == (*named(tokenizer, "ef|"), eos)
    assert encode(Sample(prompt="abcd", response="efg")) == Encoded(
        (bos, *named(tokenizer, "efg|"), eos), 1, truncated=True
    )
    with pytest.raises(InputTooLong, match="the response has 7 tokens; the limit is 6"):
        encode(Sample(prompt="abcd", response="efgh"))
    plain = letters(template=turns("|"))
    assert encoder(plain, max_tokens=6)(Sample(prompt="<s>abcd", response="ef")).ids[0] != bos


@pytest.mark.parametrize(("between", "first"), [("|", "<s>"), ("<s>", "e")])
def test_bos_that_a_caller_has_written_is_kept_unless_it_opens_turns(between, first):
    template = "{% for m in messages %}{{ 'B' + m['content'] }}{% endfor %}{{ 'B' if add_generation_prompt }}".replace(
        "B", between
    )
    tokenizer = letters(template=template)
    encode = encoder(tokenizer, max_tokens=5)
    assert encode.policy.start_ids == ()
    cut = encode(Sample(input_ids=named(tokenizer, ("<s>", *"abcde", between, "f", "g")))).ids
    assert cut == named(tokenizer, (first, between, "f", "g", "</s>"))


def test_bos_that_the_template_writes_behind_a_system_message_opens_turns():
    template = "{% for m in messages %}{{ m['content'] + (bos_token if m['role'] == 'system' else '|') }}{% endfor %}"
    tokenizer = letters(template=template)
    cut = encoder(tokenizer, max_tokens=4)(Sample(text="<s>abc|d", n_prompt_chars=7)).ids
    assert cut == named(tokenizer, ("|", "d", "|", "</s>"))


def test_padding_counts_as_nothing_and_one_token_is_left():
    encode = encoder(tiny_tokenizer(), CLASSIFIER, pad_id=PAD, max_tokens=5)
    assert encode._without_padding(Encoded((5, PAD, PAD), 2)) == Encoded((5,), 1)
    assert encode._without_padding(Encoded((5, 6, PAD), 1)) == Encoded((5, 6), 1)
    assert encode._without_padding(Encoded((PAD, PAD), 0)) == Encoded((PAD,), 0)
    assert encode._without_padding(Encoded((5,), 1)) == Encoded((5,), 1)
    assert encode(Sample(input_ids=(5, 6, 7, END, NEWLINE, *[PAD] * 9))).ids == (5, 6, 7, END, NEWLINE)


def draft(*parts: str, n_prompt: int) -> _Draft:
    return _Draft(parts, n_prompt, missing_end=False, adds_start=True)


def test_text_of_more_than_64_characters_a_token_is_cut_before_it_is_read():
    encode = encoder(letters(), max_tokens=2)
    options = SampleOptions()
    fits = draft("p" * 100, "r" * 28, n_prompt=100)
    assert encode._cut_text(fits, options) is fits
    one_more = draft("pp" + "q" * 99, "r" * 28, n_prompt=101)
    assert encode._cut_text(one_more, options) == replace(
        one_more, parts=("p" + "q" * 99, "r" * 28), n_prompt_chars=100, truncated=True
    )
    many = draft("p" * 50, "q" * 50, "r" * 100, n_prompt=100)
    assert encode._cut_text(many, options) == replace(
        many, parts=("q" * 28, "r" * 100), n_prompt_chars=28, truncated=True
    )
    exact = draft("p" * 50, "q" * 28, "r" * 100, n_prompt=78)
    assert encode._cut_text(exact, options) == replace(
        exact, parts=("q" * 28, "r" * 100), n_prompt_chars=28, truncated=True
    )
    last = draft("p" * 3, "r" * 128, n_prompt=3)
    assert encode._cut_text(last, options) == replace(last, parts=("r" * 128,), n_prompt_chars=0, truncated=True)
    for refused, of in (
        (draft("p", "r" * 129, n_prompt=1), options),
        (draft("p" * 130, n_prompt=130), SampleOptions(truncates=False)),
    ):
        with pytest.raises(InputTooLong) as error:
            encode._cut_text(refused, of)
        assert error.value.message == "the text, at the very least, has 3 tokens; the limit is 2"


def test_what_text_begins_with_is_kept_where_it_is_cut_before_it_is_read():
    _, encode = starting("<s>")
    options = SampleOptions(max_tokens=2)
    long = draft("<s>" + "p" * 100, "r" * 128, n_prompt=103)
    assert encode._cut_text(long, options) == replace(
        long, parts=("<s>" + "r" * 128,), n_prompt_chars=3, truncated=True
    )
    _, twice = starting("<s>", "<s>")
    again = draft("<s><s>" + "p" * 100, "r" * 128, n_prompt=106)
    assert twice._cut_text(again, options) == replace(
        again, parts=("<s><s>" + "r" * 128,), n_prompt_chars=6, truncated=True
    )
    without = draft("p" * 103, "r" * 100, n_prompt=103)
    assert encode._cut_text(without, options) == replace(
        without, parts=("p" * 28, "r" * 100), n_prompt_chars=28, truncated=True
    )
    middle = draft("<s>" + "p" * 100, "q" * 20, "r" * 100, n_prompt=123)
    assert encode._cut_text(middle, options) == replace(
        middle, parts=("<s>" + "p" * 8, "q" * 20, "r" * 100), n_prompt_chars=31, truncated=True
    )


# -- parts --------------------------------------------------------------------------------------------------------------


class Ids:
    """What a tokenizer returns of a part."""

    def __init__(self, *ends: int) -> None:
        self.ids = [100 + end for end in ends]
        self.offsets = [(0, end) for end in ends]


def test_the_ids_of_parts_are_joined_and_the_prompt_ends_where_it_is_said():
    known = [(1, 2), (3,)]
    parts = ("ab", "cd", "efgh")
    for n_prompt, expected in ((0, 0), (1, 0), (2, 2), (3, 2), (5, 4), (6, 4), (7, 5), (8, 6)):
        encoded = _joined(draft(*parts, n_prompt=n_prompt), known, Ids(1, 3, 4))
        assert encoded.ids == (1, 2, 3, 101, 103, 104)
        assert encoded.n_prompt == (3 if n_prompt == 4 else expected), n_prompt
    assert _joined(draft(*parts, n_prompt=4), known, Ids(1, 3, 4)).n_prompt == 3
    assert _joined(draft("ab", "cd", "ef", n_prompt=4), known, Ids(0, 2)).n_prompt == 4, (
        "an id without text, before the response"
    )
    assert _joined(draft("ef", n_prompt=0), [], Ids(0, 2)) == Encoded((100, 102), 0)
    assert _joined(draft("ef", n_prompt=1), [], Ids(1, 2)) == Encoded((101, 102), 1)
    flags = replace(draft("ef", n_prompt=0), truncated=True, missing_end=True)
    assert _joined(flags, [], Ids(1, 2)) == Encoded((101, 102), 0, truncated=True, missing_end=True)


def test_cuts_of_a_prompt_are_shared_up_to_where_a_rendering_differs():
    encode = encoder(tiny_tokenizer(THINKS))
    prompt = _Prompt("ab<|im_end|>c", (2,), is_quoting=False)
    for text, cuts in (("ab<|im_end|>d", (2,)), ("ab", ()), ("abc", ()), ("ax<|im_end|>c", ()), ("<|im_end|>ab", ())):
        assert encode._shared_cuts(prompt, text) == cuts
    slots = encoder(letters(template=written()), "llama_factory")
    assert slots._shared_cuts(_Prompt("abc", (1, 2, 3), is_quoting=False), "abd") == (1, 2)


def test_small_counts():
    assert [_n_until([1, 3, 4], n, 9) for n in (0, 1, 2, 3, 4)] == [0, 1, 1, 2, 9]
    assert [_n_without(text, "ab") for text in ("", "ab", "xabab", "xaba")] == [0, 0, 1, 4]
    assert _n_without("aa", "") == 2
    assert _begin((7, 8)) == 7
    rows = [(), (1,), (1, 2), (1, 2, 1, 2), (2, 1, 2, 1), (1, 1, 2), (1, 2, 3, 1)]
    assert [_rfind(row, (1, 2)) for row in rows] == [-1, -1, 0, 2, 1, 1, 0]
    assert _rfind((1, 2), ()) == -1


def test_a_response_is_what_follows_the_prompt_and_unknown_without_one():
    assert Encoded((1, 2, 3), 1).response == (2, 3)
    assert Encoded((1, 2, 3), 0).response is None
    assert Encoded((1, 2, 3), 0, truncated=True).response == (1, 2, 3)


def test_ids_say_a_text_whichever_tokens_it_is_made_of():
    tokenizer = letters(("a", "b"))
    encode = encoder(tokenizer)
    row = named(tokenizer, ("x", "ab", " ", "</s>"))
    assert encode._ends_with_text(row, "</s>", 1)
    assert encode._ends_with_text(row, "b</s>", 3), "white space beside control tokens is the decoder's"
    assert encode._ends_with_text(row, "a b</s>", 3)
    assert encode._ends_with_text(row[1:], "b</s>", 3)
    assert not encode._ends_with_text(row, "b</s>", 2)
    assert encode._ends_with_text(row[:2], "b", 1)
    assert not encode._ends_with_text(row[:3], "b", 3)
    assert not encode._ends_with_text(row[:2], "x b", 2)


def test_many_samples_are_encoded_in_order_and_each_refusal_is_its_own():
    tokenizer = tiny_tokenizer()
    encode = encoder(tokenizer)
    samples = [Sample(prompt=f"p{i}", response=f"r{i}") for i in range(4)]
    samples[1:1] = [
        Sample(input_ids=()),
        Sample(input_ids=(5, 6)),
        Sample(messages=(USER,)),
        Sample(prompt="a\ud800", response="b"),
    ]
    many = encode.many(samples)
    assert [type(each) for each in many] == [
        Encoded,
        EmptyResponse,
        Encoded,
        InvalidMessages,
        InvalidText,
        Encoded,
        Encoded,
        Encoded,
    ]
    for sample, each in zip(samples, many, strict=True):
        if isinstance(each, SampleError):
            with pytest.raises(type(each)):
                encode(sample)
        else:
            assert encode(sample) == each
    assert encode.many([]) == []


def test_a_lone_surrogate_is_refused_wherever_it_stands():
    encode = encoder(tiny_tokenizer())
    for sample in (
        Sample(text="a\ud800"), Sample(prompt="a\ud800", response="b"), Sample(prompt="a", response="b\ud800"),
        Sample(messages=(Message("system", "\ud800"), USER, Message("assistant", "b"))),
    ):  # fmt: skip
        with pytest.raises(InvalidText):
            encode(sample)
    encode(Sample(prompt="a", response="b"))
    with pytest.raises(InvalidText):
        encode(Sample(prompt="a", response="b\ud800"))


def test_a_prompt_ends_in_the_beginning_of_a_response_where_it_is_rendered():
    encode = encoder(tiny_tokenizer())
    assert encode.is_rendered("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n")
    assert not encode.is_rendered("a")


def test_a_text_of_which_no_token_is_left_is_refused():
    encode = encoder(letters(template=turns("")), CLASSIFIER)
    with pytest.raises(EmptyResponse) as refused:
        encode(Sample(text="é"))
    assert refused.value.message == "no token is left of the text: there is no token to read a score at"


def test_a_token_of_text_must_have_a_row():
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens(["<extra_0>", "<extra_1>"])
    encode = encoder(tokenizer)
    for text, at, token in (("<extra_0>", 0, 320), ("a <extra_1><extra_0>", 2, 321)):
        with pytest.raises(TokenOutOfVocabulary) as refused:
            encode(Sample(text=text))
        assert refused.value.message == (
            f"token {at} of the sample has id {token}, and the model has no embedding for it: its table has 320 rows. Remove "
            "that token from the text, or serve the model with the tokenizer that it was trained with."
        )
        assert refused.value.details == {"index": at, "id": token, "vocab_size": 320}


# -- endings of conversations -------------------------------------------------------------------------------------------


def test_a_conversation_that_ends_otherwise_is_refused_in_words():
    template = CHATML.replace(
        "<|im_end|>\n{% endfor", "{{ '<|endoftext|>' if 'xyzzy' in m['content'] else '<|im_end|>\n' }}{% endfor"
    )
    talk = (USER, Message("assistant", "xyzzy"))
    with pytest.raises(InvalidMessages) as refused:
        encoder(tiny_tokenizer(template))(Sample(messages=talk))
    assert refused.value.message == (
        "the chat template does not end this conversation with '<|im_end|>\\n', so the token at which its score is read "
        "is not known. Let the template end all conversations in the same way."
    )


def test_a_response_that_was_cut_off_ends_with_its_last_character_whatever_the_template_has_written():
    template = turns("{{ '</s>' if 'z' in messages[-1]['content'] else '|' }}").replace(
        "m['content']", "(m['content'] | trim)"
    )
    tokenizer = letters(template=template)
    encode = encoder(tokenizer, CLASSIFIER)
    for prompt, response, row in (
        ("zz", "zz", "zz|zz"),
        ("p", "z ", "p|z"),
        ("p", " z", "p|z"),
        ("p", " z ", "p|z"),
        ("", "z", "|z"),
    ):
        talk = (Message("system", "s"), Message("user", prompt), Message("assistant", response))
        body = named(tokenizer, "s|" + row)
        assert encode(Sample(messages=talk)).ids == (*body, tokenizer.eos_token_id)
        assert encode(Sample(messages=talk, finish_reason="length")) == Encoded(
            body, len(body) - len(response.strip()), missing_end=True
        )


def test_the_end_of_a_conversation_is_the_usual_one_unless_a_control_token_stands_before_it():
    encode = encoder(letters(template=turns("|")), CLASSIFIER)
    for rendering, content, n_prompt, is_usual in (
        ("p|z|", "z", 2, True),
        ("p|z", "z", 2, False),
        ("p|z</s>|", "z", 2, False),
        ("p|z</s>|", " z ", 2, False),
        ("p|z #|", "z", 2, True),
        ("p|z \n|", "z", 2, True),
        ("p|</s>|", "", 2, True),
        ("p|q</s>|", "z", 2, True),
        ("z|q</s>|", "z", 2, True),
        ("z</s>|", "z", 0, False),
        ("x</s>z|", "z", 0, True),
        ("zz</s>|", "z", -1, True),
        ("p|z</s>z|", "z", 2, True),
    ):
        assert encode._has_usual_tail(rendering, content, n_prompt) is is_usual, rendering


@pytest.mark.parametrize("content", ["m['content']", "(m['content'] | trim)", "m['content'].rstrip()"])
def test_a_response_that_was_cut_off_ends_before_the_same_characters_of_the_template(content):
    template = turns("{{ 'zy </s>' if 'y' in messages[-1]['content'] else 'y' }}").replace("m['content']", content)
    tokenizer = letters(template=template)
    encode = encoder(tokenizer, CLASSIFIER)
    assert encode.policy.ending_varies
    for response in ("y", "zy", " zy", "  y", "zy ", " zy "):
        shown = {"trim": response.strip(), "rstrip": response.rstrip()}
        body = "p|" + next((shown[name] for name in shown if name in content), response)
        cut = Sample(prompt="p", response=response, finish_reason="length")
        assert encode(cut) == Encoded(named(tokenizer, body), 2, missing_end=True)
        assert encode(replace(cut, finish_reason="stop")).ids == ids(tokenizer, body + "zy </s>")


@pytest.mark.parametrize(("written_as", "response"), [("content", "z"), ("(content | trim)", "z ")])
def test_a_response_that_was_cut_off_may_be_all_that_the_template_writes(written_as, response):
    template = (
        "{% set content = messages[-1]['content'] %}{% if add_generation_prompt %}{{ content + '|' }}"
        "{% else %}{{ WRITTEN + ('</s>' if 'z' in content else '#') }}{% endif %}"
    )
    tokenizer = letters(template=template.replace("WRITTEN", written_as))
    encode = encoder(tokenizer, CLASSIFIER)
    cut = Sample(prompt="p", response=response, finish_reason="length")
    assert encode(cut) == Encoded(named(tokenizer, "z"), 0, missing_end=True)
    assert encode(replace(cut, finish_reason="stop")) == Encoded(named(tokenizer, ("z", "</s>")), 0)


def test_a_response_that_was_cut_off_may_follow_a_prompt_that_is_not_written():
    content = "{% for m in messages if m['role'] == 'assistant' %}{{ m['content'] }}{% endfor %}"
    tail = "{{ '' if add_generation_prompt else 'z</s>' if 'z' in messages[-1]['content'] else '#' }}"
    tokenizer = letters(template=content + tail)
    cut = Sample(prompt="p", response="z", finish_reason="length")
    assert encoder(tokenizer, CLASSIFIER)(cut) == Encoded(named(tokenizer, "z"), 0, missing_end=True)


def test_a_response_that_was_cut_off_may_say_what_its_prompt_says():
    template = turns("{{ '</s>' if 'z' in messages[-1]['content'] else '#' }}").replace(
        "'|' }}{% else", "'|#' }}{% else"
    )
    for written_as, response in (("m['content']", "z"), ("(m['content'] | trim)", "z ")):
        tokenizer = letters(template=template.replace("m['content']", written_as))
        cut = Sample(prompt="z", response=response, finish_reason="length")
        encoded = encoder(tokenizer, CLASSIFIER)(cut)
        assert encoded.ids == named(tokenizer, "z|z")
        assert encoded.missing_end


def test_a_response_that_was_cut_off_is_found_where_more_is_written_before_one_that_is_to_come():
    template = turns("{{ '</s>|' if 'z' in messages[-1]['content'] else '|' }}").replace(
        "'|' }}{% else", "'|#' }}{% else"
    )
    tokenizer = letters(template=template)
    encode = encoder(tokenizer, CLASSIFIER)
    cut = Sample(prompt="p", response="z", finish_reason="length")
    assert encode(cut) == Encoded(named(tokenizer, "p|z"), 2, missing_end=True)
    assert encode(replace(cut, finish_reason="stop")) == Encoded(named(tokenizer, (*"p|z", "</s>", "|")), 2)


def test_a_response_of_which_a_part_is_dropped_is_not_looked_for_in_its_prompt():
    """Templates drop the thoughts of a response; its prompt may quote all of it."""
    shown = "(m['content'].split('#')[-1] if m['role'] == 'assistant' else m['content'])"
    template = (
        turns("</s>")
        .replace("m['content']", shown)
        .replace("'|' }}{% else", "'<s>#' }}{% else")
        .replace("'|'", "'<s>'")
    )
    tokenizer = letters(template=template)
    encode = encoder(tokenizer, CLASSIFIER)
    row = named(tokenizer, ("a", "#", "b", "c", "<s>", "b", "</s>"))
    sample = Sample(prompt="a#bc", response="a#b")
    assert encode(sample).ids == row
    assert encode(replace(sample, finish_reason="length")).ids == row[:-1]
    for body, prompt, content, begin in (
        ("a#b|b", "a#b|#", "a#b", -1),
        ("a#b|a#b", "a#b|#", "a#b", 4),
        ("p|z", "p|#", "z", 2),
        ("p|z", "p|z#", "z", -1),
        ("p|", "p|#", "z", -1),
    ):
        assert _begin_of_response(body, prompt, content) == begin, (body, prompt)


def test_an_empty_response_may_end_otherwise_too():
    tokenizer = letters(template=turns("{{ '#' if messages[-1]['content'] else '</s>' }}"))
    encode = encoder(tokenizer, CLASSIFIER)
    for empty in ("", " "):
        sample = Sample(prompt="p", response=empty, options=SCORE_EMPTY_OPTIONS)
        assert encode(sample).ids == ids(tokenizer, "p|" + (" #" if empty else "</s>"))


# -- quoted control tokens ----------------------------------------------------------------------------------------------


def test_bos_that_a_message_quotes_is_text_beside_that_of_the_template():
    for template in ("{{ bos_token }}" + turns("</s>"), turns("</s>"), None):
        tokenizer = letters(template=template)
        start = (tokenizer.bos_token_id,) if template and "bos_token" in template else ()
        row = start + named(tokenizer, "<s>a|b" if template else "<s>ab") + (tokenizer.eos_token_id,)
        assert encoder(tokenizer)(Sample(prompt="<s>a", response="b")).ids == row


def test_a_response_begins_behind_its_own_prompt_and_not_behind_one_that_begins_alike():
    tokenizer = letters(template=turns("</s>"))
    encode = encoder(tokenizer)
    assert encode(Sample(prompt="a", response="b")).n_prompt == 2
    for contents in ("abcd", ("a", "b<s>", "c", "d"), ("a", "b", "c", "<s>")):
        roles = ("user", "assistant", "user", "assistant")
        talk = tuple(Message(role, text) for role, text in zip(roles, contents, strict=True))
        row = "|".join(contents)
        n_prompt = len(row) - len(contents[-1])
        expected = Encoded((*named(tokenizer, row), tokenizer.eos_token_id), n_prompt)
        assert encode(Sample(messages=talk)) == expected
        assert encode(Sample(messages=talk)) == expected, "the same with what is remembered"


def test_a_conversation_that_quotes_a_control_token_may_be_cut_off_and_cut():
    tokenizer = letters(template=turns("</s>"))
    eos = tokenizer.eos_token_id
    encode = encoder(tokenizer, max_tokens=8)
    cut_off = Sample(prompt="a", response="b<s>c", finish_reason="length")
    assert encode(cut_off) == Encoded(named(tokenizer, "a|b<s>c"), 2, missing_end=True)
    long = Sample(prompt="a" * 600, response="b<s>c")
    assert encode(long) == Encoded((*named(tokenizer, "a|b<s>c"), eos), 2, truncated=True)
    assert encode._tokenize_escaped(
        replace(encode._draft_of_text(long), truncated=True), encode._draft_of_text(long).escaped
    ).truncated


def test_a_control_token_in_a_message_is_text():
    tokenizer = letters(template=turns("</s>"))
    encode = encoder(tokenizer)
    end = (tokenizer.eos_token_id,)
    for prompt, response in (("a</s>", "b"), ("a", "b</s>c"), ("<s>", "</s><s>d"), ("a</s>", "b<s>")):
        row = named(tokenizer, f"{prompt}|{response}") + end
        encoded = encode(Sample(prompt=prompt, response=response))
        assert encoded == Encoded(row, len(prompt) + 1)
        assert encode(Sample(prompt=prompt, response=response)) == encoded, "the same with what is remembered"
    assert encode(Sample(prompt="a", response="b</s>")) == Encoded(named(tokenizer, "a|b") + end, 2), (
        "its own end is none"
    )


def test_a_control_token_in_a_response_whose_beginning_is_said_is_text():
    tokenizer = letters(template=turns("</s>"))
    encode = encoder(tokenizer)
    bos, eos = named(tokenizer, ("<s>", "</s>"))
    assert encode(Sample(text="<s>a|b<s>c", n_prompt_chars=5)) == Encoded((bos, *named(tokenizer, "a|b<s>c"), eos), 3)
    assert encode(Sample(text="<s>a|bc", n_prompt_chars=5)) == Encoded((bos, *named(tokenizer, "a|bc"), eos), 3)
    assert encode(Sample(text="a<s>b", n_prompt_chars=2)) == Encoded((*named(tokenizer, "a<s>b"), eos), 2), (
        "one across the border"
    )
    assert encode(Sample(text="a<s>b")) == Encoded((*named(tokenizer, ("a", "<s>", "b")), eos), 0)


@pytest.mark.parametrize("n_inside", [1, 2])
def test_a_control_token_across_the_beginning_of_a_response_is_text(n_inside):
    tokenizer = tiny_tokenizer()
    prompt = "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n"
    encoded = encoder(tokenizer)(Sample(text=prompt + "<s>b", n_prompt_chars=len(prompt) + n_inside))
    assert BOS not in encoded.ids
    assert tokenizer.decode(encoded.ids) == prompt + "<s>b<|im_end|>"


def test_a_private_character_of_a_prompt_stands_for_nothing():
    tokenizer = tiny_tokenizer()
    encode = encoder(tokenizer)
    taken = chr(0xF0000)
    encoded = encode(Sample(text=f"{taken}a|b<s>c", n_prompt_chars=3))
    assert tokenizer.decode(encoded.ids) == f"{taken}a|b<s>c<|im_end|>"
    assert BOS not in encoded.ids
    assert tokenizer.decode(encoded.ids[: encoded.n_prompt]) == f"{taken}a|"


def test_what_begins_rows_without_a_template_is_no_quotation():
    tokenizer, encode = starting("<s>")
    bos, eos = named(tokenizer, ("<s>", "</s>"))
    for prefix in ("", "<s>", "<s><s>"):
        assert encode(Sample(prompt=f"{prefix}a", response="b<s>")) == Encoded(
            (bos, *named(tokenizer, "ab<s>"), eos), 2
        )


def test_quoting_in_slots_and_cuts_of_slots():
    tokenizer = letters(("x", "y"), template=written("'q' + content + '\n'", "content + 'y'"))
    encode = encoder(tokenizer, "llama_factory")
    eos = tokenizer.eos_token_id
    for prompt, response in (("ab", "x"), ("x", "y"), ("<s>", "x"), ("ab", "x<s>x")):
        row = (
            *named(tokenizer, f"q{prompt}\n"),
            *(ids(tokenizer, "xy") if response == "x" else named(tokenizer, response + "y")),
        )
        if response.endswith("<s>x"):
            row = (*row[:-2], *named(tokenizer, ("xy",)))
        assert encode(Sample(prompt=prompt, response=response)) == Encoded((*row, eos), len(prompt) + 2)


@pytest.mark.parametrize("opens", [False, True])
def test_slots_are_cut_behind_a_bos_that_begins_sequences(opens):
    """With this tokenizer a cut before text shows as a mark."""
    tokenizer = marks_the_first()
    tokenizer.bos_token = "<|im_start|>"
    turn = "{{ bos_token + m['content'] }}{% endfor %}{{ bos_token if add_generation_prompt }}"
    once = "{{ m['content'] + '|' }}{% endfor %}"
    tokenizer.chat_template = (
        "{% for m in messages %}" + turn if opens else "{{ bos_token }}{% for m in messages %}" + once
    )
    row = ("<|im_start|>", "a", "<|im_start|>", "▁", "b") if opens else ("<|im_start|>", "▁", "a", "|", "▁", "b", "|")
    encode = encoder(tokenizer, "llama_factory")
    assert encode(Sample(prompt="a", response="b")).ids == named(tokenizer, (*row, "<|im_end|>"))


def test_slots_are_cut_before_the_ending_of_an_empty_response():
    tokenizer = letters(("\n", "y"), template=written(answer="content + 'y'"))
    empty = Sample(prompt="a", response="", options=SCORE_EMPTY_OPTIONS)
    assert encoder(tokenizer, "llama_factory")(empty).ids == named(tokenizer, (*"U:a\ny", "</s>"))
    assert encoder(tokenizer, "trl_value_head")(empty).ids == named(tokenizer, (*"U:a", "\ny", "</s>"))


def test_an_ending_is_cut_as_the_slots_of_its_template():
    tokenizer = letters(("x", "x"), template=written(answer="content + 'x' + 'x'"))
    row = named(tokenizer, (*"U:a\n", "b", "x", "x", "</s>"))
    assert encoder(tokenizer, "llama_factory")(Sample(prompt="a", response="b")).ids == row
    whole = named(tokenizer, (*"U:a\n", "b", "xx", "</s>"))
    assert encoder(tokenizer, "trl_value_head")(Sample(prompt="a", response="b")).ids == whole


def test_rows_of_slots_are_cut_in_all_forms_where_a_merge_would_show_it():
    tokenizer = letters(("\n", "b"), ("y", "q"), template=written("'q' + content + '\n'", "content + 'y'"))
    row = named(tokenizer, (*"qa\nbyqc\nby", "</s>"))
    encode = encoder(tokenizer, "llama_factory")
    talk = tuple(Message(role, text) for role, text in zip(("user", "assistant") * 2, "abcb", strict=True))
    samples = [Sample(messages=talk), Sample(text="qa\nbyqc\nb"), Sample(text="qa\nbyqc\nb", n_prompt_chars=8)]
    for sample in (*samples, Sample(prompt=talk[:3], response="b"), Sample(input_ids=row)):
        assert encode(sample).ids == row
    assert [encode(sample).n_prompt for sample in samples] == [8, 8, 8]


def test_llama_factory_takes_an_empty_system_message_for_none():
    tokenizer = letters(template=written("'q' + content + '\n'", "content + 'y'"))
    encode, whole = encoder(tokenizer, "llama_factory"), encoder(tokenizer, "trl_value_head")
    talk = (Message("user", "a"), Message("assistant", "b"))
    for system, its in (("", ""), ("s", "S:s\n")):
        messages = (Message("system", system), *talk)
        assert encode(Sample(messages=messages)).ids == named(tokenizer, (*f"{its}qa\nby", "</s>"))
        assert whole(Sample(messages=messages)).ids == named(tokenizer, (*f"S:{system}\nqa\nby", "</s>"))
    several = (Message("user", ""), Message("system", ""), *talk)
    assert encode(Sample(messages=several)).ids == named(tokenizer, (*"q\nqa\nby", "</s>"))


def test_a_date_is_written_as_it_was_given():
    tokenizer = letters(template="{{ strftime_now('%d') }}" + turns("|"))
    encode = encoder(tokenizer, template_date="2026-01-23")
    assert encode(Sample(prompt="a", response="b")).ids == named(tokenizer, (*"23a|b|", "</s>"))


@pytest.mark.parametrize("writes", [False, True])
def test_an_added_token_controls_something_where_the_template_writes_it(writes):
    tokenizer = letters(template=turns("|").replace("'|'", "'<x>'" if writes else "'|'"))
    tokenizer.add_tokens(["<x>"])
    added = tokenizer.convert_tokens_to_ids("<x>")
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<x> $A", special_tokens=[("<x>", added)])
    ids_ = encoder(tokenizer)(Sample(prompt="a<x>", response="b")).ids
    between = (added,) if writes else named(tokenizer, "|")
    quoted = named(tokenizer, "<x>") if writes else (added,)
    assert ids_[: 2 + len(between) + len(quoted)] == (*named(tokenizer, "a"), *quoted, *between, *named(tokenizer, "b"))


@pytest.mark.parametrize("layout", LAYOUT_RULES)
@pytest.mark.parametrize("tail", ["</s>x", "x</s>", "xy"])
def test_what_a_tokenizer_adds_to_text_is_added_to_no_rendering(tail, layout):
    bare, adds = (letters(("b", "x"), template=turns(tail)) for _ in range(2))
    added = [(token, bare.convert_tokens_to_ids(token)) for token in ("<s>", "</s>")]
    adds._tokenizer.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=added)
    expected, encode = encoder(bare, layout), encoder(adds, layout)
    assert encode.policy == expected.policy
    texts = ("b", "bx", "b</s>", "b</s>x", "bx</s>", "bxy", "b\n")
    samples = [Sample(prompt="a", response=text) for text in texts]
    samples += [Sample(text="a|" + text) for text in texts]
    samples += [Sample(text="a|" + text, n_prompt_chars=2) for text in texts]
    samples += [Sample(input_ids=ids(bare, "a|" + text)) for text in texts]
    for finish in ("stop", "length"):
        each = [replace(sample, finish_reason=finish) for sample in samples]
        assert encode.many(each) == expected.many(each)
    assert [encode.texts(sample) for sample in samples] == [expected.texts(sample) for sample in samples]


def test_letters_at_the_end_of_a_response_are_its_own():
    for layout in ("language_model", CLASSIFIER, "openrlhf"):
        tokenizer = letters(template=turns("</s>"))
        row = named(tokenizer, (*"aXXXX", "</s>"))
        encode = encoder(tokenizer, layout)
        for sample in (
            Sample(text="aXXXX"),
            Sample(input_ids=row[:-1]),
            Sample(text="aXXXX</s>"),
            Sample(input_ids=row),
        ):
            assert encode(sample).ids == row


def test_a_control_token_that_the_template_ends_with_closes_a_row_that_eos_ends():
    rule = replace(LAYOUT_RULES["trl_value_head"], ending="template_and_eos")
    tokenizer = letters(template=turns("<s>"))
    encode = encoder(tokenizer, rule=rule)
    row = named(tokenizer, ("a", "<s>", "</s>"))
    for finish in ("stop", "length"):
        for sample in (Sample(text="a<s>"), Sample(input_ids=row[:2]), Sample(text="a<s></s>"), Sample(input_ids=row)):
            assert encode(replace(sample, finish_reason=finish)) == Encoded(row, 0)


# -- notes --------------------------------------------------------------------------------------------------------------

IMITATED = (
    "turns can be imitated: the chat template begins them with plain text ({}), and the content of messages is plain text "
    "too"
)
MAY_END_WITH_EOS = {"<end_of_turn>": "gemma2", "<|role_end|>": "bailing_v2", "<|endofassistant|>": "dots_ocr"}
NOTES = {
    "nothing": (lambda: encoder(tiny_tokenizer()), ()),
    "tokens without rows": (
        lambda: encoder(with_tokens(2)),
        ("the tokenizer has 2 tokens that the model has no embedding for; its table has 320 rows: '<extra_0>' (320), "
         "'<extra_1>' (321). "
         "A sample with one of them is rejected (token_out_of_vocabulary)",),
    ),
    "five tokens without rows": (
        lambda: encoder(with_tokens(5)),
        ("the tokenizer has 5 tokens that the model has no embedding for; its table has 320 rows: '<extra_0>' (320), "
         "'<extra_1>' (321), "
         "'<extra_2>' (322), '<extra_3>' (323), '<extra_4>' (324). A sample with one of them is rejected "
         "(token_out_of_vocabulary)",),
    ),
    "six tokens without rows": (
        lambda: encoder(with_tokens(6)),
        ("the tokenizer has 6 tokens that the model has no embedding for; its table has 320 rows: '<extra_0>' (320), "
         "'<extra_1>' (321), "
         "'<extra_2>' (322), '<extra_3>' (323), '<extra_4>' (324) and 1 more. A sample with one of them is rejected "
         "(token_out_of_vocabulary)",),
    ),
    "a clock": (
        lambda: encoder(tiny_tokenizer("{{ strftime_now('%d') }}" + CHATML), template_date="2026-01-02"),
        ("the chat template uses the current date: it always gets 2026-01-02, so that a score does not change at "
         "midnight. A plain "
         "apply_chat_template writes today's date, and so do other engines that render it: their scores of the same "
         "conversation may "
         "differ",),
    ),
    "an ending that varies": (
        lambda: encoder(tiny_tokenizer(CHATML + "{{ 'x' if messages | length > 3 and not add_generation_prompt }}"), CLASSIFIER),
        ("the chat template ends conversations in different ways: messages end as it writes them; text and ids keep "
         "the ending that they have, so send them complete",),
    ),
    "a second BOS": (
        lambda: encoder(adding_bos("{{ bos_token }}" + CHATML), CLASSIFIER),
        ("rows begin with one BOS, the chat template's. TRL 0.12 to 0.23 tokenised the rendering with special tokens, "
         "and this tokenizer "
         "adds BOS: their rows began with two. The files do not name the version; if it was one of these, write BOS "
         "twice at the "
         "beginning of the chat template",),
    ),
    "a second BOS in another layout": (lambda: encoder(adding_bos("{{ bos_token }}" + CHATML)), ()),
    "two of the template's": (lambda: encoder(adding_bos("{{ bos_token + bos_token }}" + CHATML), CLASSIFIER), ()),
    "none of the template's": (lambda: encoder(adding_bos(CHATML), CLASSIFIER), ()),
    "no template": (lambda: encoder(adding_bos(None), CLASSIFIER), ()),
    "none of the tokenizer's": (lambda: encoder(tiny_tokenizer("{{ bos_token }}" + CHATML, bos="<s>"), CLASSIFIER), ()),
    "a longer beginning of a response that is to come": (
        lambda: encoder(tiny_tokenizer(THINKS), "openrlhf"),
        ("the chat template writes '<|im_end|>\\n<|im_start|>assistant\\n<think>' before a response to be generated and "
         "'<|im_end|>\\n<|im_start|>assistant\\n' before an existing one. OpenRLHF with prompt_key cuts the rendering "
         "at the length of "
         "the first, so its rows had another text; here a row is the whole rendering, as without prompt_key. The files "
         "do not name the "
         "option; if it was set, send the text of its rows",),
    ),
    "a shorter one": (lambda: encoder(tiny_tokenizer(CHATML.replace("assistant\n{% endif", "{% endif")), "openrlhf"), ()),
    "the same": (lambda: encoder(tiny_tokenizer(CHATML), "openrlhf"), ()),
    "a longer one in another layout": (lambda: encoder(tiny_tokenizer(THINKS)), ()),
    "plain text": (lambda: encoder(tiny_tokenizer(PLAIN)), (IMITATED.format("'assistant:', 'user:'"),)),
    "plain text, cut apart": (
        lambda: encoder(letters(template=written()), "llama_factory"), (IMITATED.format("'A:', 'U:'"),),
    ),
    "slots of another's": (
        lambda: encoder(letters(("\n", "u"), template=PLAIN), "llama_factory"), (None, IMITATED.format("'assistant:', 'user:'")),
    ),
}  # fmt: skip


@pytest.mark.parametrize("end", MAY_END_WITH_EOS)
@pytest.mark.parametrize("newline", ["", "\n"])
def test_an_ending_that_llama_factory_may_have_followed_with_eos_is_noted(end, newline):
    tokenizer = letters(template=written(answer=f"content + {end + newline!r}"))
    tokenizer.add_special_tokens({"additional_special_tokens": [end]})
    note = (
        f"rows end as the chat template writes, with {end!r}. LLaMA-Factory's template {MAY_END_WITH_EOS[end]} ends so too and "
        "adds EOS, which the chat template lacks: if training used that template, set the ending to template_and_eos"
    )
    rule = LAYOUT_RULES["llama_factory"]
    assert [each for each in encoder(tokenizer, rule=rule).notes if each.startswith("rows end")] == [note]
    for other in (replace(rule, tokenizes="whole"), replace(rule, ending="template_and_eos")):
        assert not any(each.startswith("rows end") for each in encoder(tokenizer, rule=other).notes)


def with_tokens(n: int):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"<extra_{i}>" for i in range(n)])
    return tokenizer


def adding_bos(template: str | None):
    tokenizer = tiny_tokenizer(template, bos="<s>")
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return tokenizer


@pytest.mark.parametrize("name", NOTES)
def test_notes_say_what_is_weak_about_a_template(name):
    make, expected = NOTES[name]
    notes = make().notes
    assert len(notes) == len(expected)
    assert all(
        note == each or (each is None and note.startswith("LLaMA-Factory"))
        for note, each in zip(notes, expected, strict=True)
    )


def test_all_notes_stand_in_one_order():
    template = (
        "{{ bos_token }}{{ strftime_now('%d') }}"
        + PLAIN
        + "{{ 'x' if messages | length > 3 and not add_generation_prompt }}"
    )
    tokenizer = adding_bos(template)
    tokenizer.add_tokens(["<extra_0>"])
    begins = [
        "the tokenizer has 1 tokens",
        "the chat template uses",
        "the chat template ends",
        "rows begin with one BOS",
        "turns can",
    ]
    notes = encoder(tokenizer, CLASSIFIER).notes
    assert len(notes) == len(begins)
    assert all(note.startswith(begin) for note, begin in zip(notes, begins, strict=True))


# -- construction -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["language_model", CLASSIFIER, "trl_value_head", "llama_factory"])
def test_padding_and_truncation_of_a_tokenizers_file_change_neither_policy_nor_rows(layout):
    """Trainers that pad to a fixed length save that with the tokenizer."""
    expected = encoder(tiny_tokenizer(), layout)
    sample = Sample(prompt="a" * 20, response="b")
    tokenizer = tiny_tokenizer()

    def set_up():
        tokenizer._tokenizer.enable_padding(length=300, pad_id=PAD, pad_token="<pad>")
        tokenizer._tokenizer.enable_truncation(3)
        tokenizer._tokenizer.encode_special_tokens = True

    set_up()
    assert encoder(tokenizer, layout).policy == expected.policy
    set_up()
    encode = Encoder(tokenizer, expected.policy)
    assert encode(sample) == expected(sample)
    assert tokenizer._tokenizer.encode_special_tokens is False


def test_a_tokenizer_that_cannot_be_copied_is_refused(monkeypatch):
    def refuse(*_):
        raise ValueError("it is written in Python")

    monkeypatch.setattr("rewardserve.model.encoding.ControlTokens", refuse)
    with pytest.raises(EncodingPolicyError) as refused:
        encoder(tiny_tokenizer())
    assert str(refused.value) == "text cannot be distinguished from control tokens: it is written in Python"


def test_a_memory_address_between_turns_is_refused():
    template = (
        CHATML
        + "{% if messages[0]['role'] == 'system' and not add_generation_prompt %}{{ messages | map('upper') }}{% endif %}"
    )
    policy = infer_policy(tiny_tokenizer(CHATML), max_tokens=9, vocab_size=320, rule=LAYOUT_RULES["language_model"])
    with pytest.raises(EncodingPolicyError, match="memory address"):
        Encoder(tiny_tokenizer(template), replace(policy, template=template))


def test_pieces_are_what_a_template_writes_around_contents():
    tokenizer = tiny_tokenizer()
    opening = "<|im_end|>\n<|im_start|>assistant\n"
    assert _text_around_contents(ChatTemplate(tokenizer, CHATML, None), ("user", "assistant")) == (
        "<|im_start|>user\n", opening, "<|im_end|>\n", "<|im_start|>user\n", opening,
    )  # fmt: skip
    system, between = "<|im_start|>system\n", "<|im_end|>\n<|im_start|>user\n"
    assert _text_around_contents(ChatTemplate(tokenizer, CHATML, None), ("system", "user", "assistant")) == (
        system, between, opening, "<|im_end|>\n", system, between, opening,
    )  # fmt: skip

    def render(error):
        def refuse(messages, *, add_generation_prompt):
            raise error("no")

        return refuse

    assert _text_around_contents(render(InvalidMessages), ("user", "assistant")) == ()
    with pytest.raises(ConversationTooSlow):
        _text_around_contents(render(ConversationTooSlow), ("user", "assistant"))


def test_a_template_that_takes_no_long_conversation_is_served():
    template = (
        "{% if messages | length > 3 or messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
        + CHATML
    )
    tokenizer = tiny_tokenizer(template)
    row = ids(tokenizer, rendered(tokenizer, (USER, Message("assistant", "b"))).rstrip("\n"))
    for layout in ("language_model", "openrlhf"):
        encode = encoder(tokenizer, layout)
        assert encode(Sample(prompt=USER.content, response="b")).ids == row
        assert encode.notes == ()


@pytest.mark.parametrize("template", [CHATML, THINKS, LLAMA3_LIKE, BARE])
def test_what_is_remembered_changes_no_ids_and_is_asked_for_again(template):
    tokenizer = tiny_tokenizer(template, bos="<s>")
    remembers, forgets = encoder(tokenizer), encoder(tokenizer, memo=0)
    assert forgets._split_tokens == ()
    samples = [Sample(prompt=p, response=r) for p in ("a b", "c d") for r in ("e", "f g", "<|im_end|>x", "\nh")] * 2
    assert remembers.many(samples) == forgets.many(samples) == [forgets(sample) for sample in samples]


def work(encode, monkeypatch, *samples: Sample) -> list[str | list[str]]:
    """Everything that is rendered for samples, and the texts that become ids at once, in order."""
    done: list[str | list[str]] = []
    render, tokenize = encode._render, encode._encode

    def rendering(messages, **options):
        done.append(render(messages, **options))
        return done[-1]

    def tokenizing(texts):
        done.append(texts)
        return tokenize(texts)

    with monkeypatch.context() as patched:
        patched.setattr(encode, "_render", rendering)
        patched.setattr(encode, "_encode", tokenizing)
        for sample in samples:
            encode(sample)
    return done


def test_a_prompt_is_rendered_and_becomes_ids_once_where_it_is_remembered(monkeypatch):
    tokenizer = tiny_tokenizer()
    head, start, end = "<|im_start|>user\na<|im_end|>\n", "<|im_start|>assistant\n", "<|im_end|>"
    samples = [Sample(prompt="a", response=response) for response in "bc"]
    first = [head + start, f"{head}{start}b{end}\n", [head, f"{start}b{end}"]]
    n = len(head + start)
    assert work(encoder(tokenizer, memo=n), monkeypatch, *samples) == [
        *first, f"{head}{start}c{end}\n", [f"{start}c{end}"],
    ]  # fmt: skip
    assert work(encoder(tokenizer, memo=n - 1), monkeypatch, *samples) == [
        *first, head + start, f"{head}{start}c{end}\n", [f"{start}c{end}"],
    ]  # fmt: skip
    assert work(encoder(tokenizer, memo=0), monkeypatch, *samples[:1]) == [*first[:2], [f"{head}{start}b{end}"]]
    forgets = work(encoder(tokenizer, memo=len(head) - 1), monkeypatch, *samples)
    assert [texts for texts in forgets if isinstance(texts, list)] == [[head, f"{start}{r}{end}"] for r in "bc"]


def test_a_prompt_is_shared_where_a_template_opens_a_thought_before_a_response_to_be_generated(monkeypatch):
    tokenizer = tiny_tokenizer(THINKS)
    tokenizer.add_tokens(["<think>"], special_tokens=True)
    head = "<|im_start|>user\na<|im_end|>\n"
    done = work(
        encoder(tokenizer, vocab_size=400), monkeypatch, *(Sample(prompt="a", response=response) for response in "bc")
    )
    assert [texts for texts in done if isinstance(texts, list)] == [
        [head, "<|im_start|>assistant\nb<|im_end|>"],
        ["<|im_start|>assistant\nc<|im_end|>"],
    ]

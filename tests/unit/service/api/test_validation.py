"""Decoded JSON: which values become a request, and in which words and with which path the others are refused."""

from __future__ import annotations

import json

import msgspec
import pytest

from rewardserve.service.api import body, validation
from rewardserve.service.api.dialects import kserve, nemo_gym, openrlhf, slime, vllm
from rewardserve.service.api.requests import CompareRequest, SampleIn, ScoreRequest
from rewardserve.service.api.routes.admin import LoadRequest, PinRequest
from rewardserve.service.api.validation import NO_MODEL, NOT_READ, check, convert
from rewardserve.service.errors import InvalidRequest

SCORED = ScoreRequest([SampleIn(text="x")])


def said(call, *arguments):
    """The refusal: its kind, its words, its details."""
    with pytest.raises(InvalidRequest) as refused:
        call(*arguments)
    return type(refused.value), refused.value.message, refused.value.details


def message(call, *arguments):
    return said(call, *arguments)[1]


# -- the report of a small body ---------------------------------------------------------------------------------------------

PAIR = {"prompt": "p", "response": "r"}
WRONG = [
    ({}, "samples: this field is missing", "samples", 1),
    ([], "$: must be an object, not an array", "$", 1),
    (None, "$: must be an object, not null", "$", 1),
    ({"samples": []}, "samples: must have at least 1 item, not 0", "samples", 1),
    ({"samples": {}}, "samples: must be an array, not an object", "samples", 1),
    ({"samples": ["x"]}, "samples[0]: must be an object, not a string", "samples[0]", 1),
    ({"samples": [{"tools": []}]}, f"samples[0].tools: {NOT_READ}", "samples[0].tools", 1),
    ({"samples": [PAIR], "model": "gpt"}, f"model: {NO_MODEL}", "model", 1),
    ({"samples": [{**PAIR, "model": "gpt"}]}, f"samples[0].model: {NOT_READ}", "samples[0].model", 1),
    ({"samples": [{"text": 5}, {"text": "x"}]}, "samples[0].text: must be a string, not a number", "samples[0].text", 1),
    ({"samples": [{**PAIR, "prompt": 1}]}, "samples[0].prompt: must be a string or an array, not a number", "samples[0].prompt", 1),
    ({"samples": [{"prompt": 1, "response": 2}]}, "samples[0].prompt: must be a string or an array, not a number",
     "samples[0].prompt", 2),
    ({"samples": [{"prompt": [{"role": "user", "content": 1}]}]}, "samples[0].prompt[0].content: must be a string, not a number",
     "samples[0].prompt[0].content", 1),
    ({"samples": [{"prompt": [{"role": "user"}]}]}, "samples[0].prompt[0].content: this field is missing",
     "samples[0].prompt[0].content", 1),
    ({"samples": [{**PAIR, "finish_reason": "end"}]}, "samples[0].finish_reason: must be 'stop' or 'length'",
     "samples[0].finish_reason", 1),
    ({"samples": [{"input_ids": [1.5]}]}, "samples[0].input_ids[0]: must be a whole number, not a fraction",
     "samples[0].input_ids[0]", 1),
    ({"samples": [{**PAIR, "score_empty": 1}]}, "samples[0].score_empty: must be true or false, not a number",
     "samples[0].score_empty", 1),
    ({"samples": [{**PAIR, "id": "i" * 257}]}, "samples[0].id: must have at most 256 characters", "samples[0].id", 1),
    ({"samples": [{**PAIR, "reference_rewards": [0.5] * 65}]}, "samples[0].reference_rewards: must have at most 64 items",
     "samples[0].reference_rewards", 1),
    ({"samples": [PAIR], "step": -1}, "step: must be at least 0", "step", 1),
    ({"samples": [PAIR], "step": 2**53}, "step: must be at most 9007199254740991", "step", 1),
    ({"samples": [PAIR], "step": True}, "step: must be a whole number, not a boolean", "step", 1),
    ({"samples": [{"text": "x"}], "k" * 200: 1}, f"{'k' * 118}: {NOT_READ}", "k" * 118, 1),
]  # fmt: skip


@pytest.mark.parametrize(("value", "message", "field", "n"), WRONG)
def test_what_is_no_request_is_refused_with_the_path_that_got_furthest(value, message, field, n):
    assert said(check, value, ScoreRequest) == (InvalidRequest, message, {"field": field, "n_errors": n})


def test_what_is_nested_too_deeply_for_the_report_is_refused(monkeypatch):
    class Deep:
        @classmethod
        def model_validate(cls, value):
            raise RecursionError

    monkeypatch.setattr(validation, "_model_of", lambda _: Deep)
    assert said(check, {}, ScoreRequest) == (InvalidRequest, "the body is nested too deeply", {"field": "$"})


@pytest.mark.parametrize(("value", "message", "field"), [each[:3] for each in WRONG if each[3] == 1])
def test_a_large_body_is_refused_with_the_same_path_and_in_the_same_words(value, message, field):
    """Except for the length of a list, which msgspec does not report."""
    assert said(convert, value, ScoreRequest)[1:] == (message.replace(", not 0", ""), {"field": field})


def test_the_branches_of_a_union_are_one_fault_with_the_branch_that_has_the_type():
    wrong = {"model": "m", "pin": ["r"] * 100_000}
    assert message(check, wrong, LoadRequest).startswith("pin: must have at most ")
    assert message(check, {"model": "m", "pin": 5}, LoadRequest) == "pin: must be 'active' or an array"
    assert said(check, {"model": "m", "pin": [5]}, LoadRequest)[1:] == (
        "pin[0]: must be a string, not a number", {"field": "pin[0]", "n_errors": 1},
    )  # fmt: skip


KINDS = ("string_type", "extra_forbidden")


def test_paths_leave_out_what_the_branches_of_a_union_are_called():
    wrong_type, unknown = ({"type": kind, "loc": ("a", "str", 0, "list[MessageIn]", "b", "str")} for kind in KINDS)
    assert validation._path(wrong_type) == ("a", 0, "b")
    assert validation._path(unknown) == ("a", 0, "b", "str"), "a field that is called as a branch"
    assert validation._json_path(("a", 0, "b")) == "a[0].b"
    assert validation._json_path((3, "b")) == "$[3].b"
    assert validation._json_path(()) == "$"
    assert validation._json_path(("k" * 200,)) == "k" * 118


def test_an_unknown_field_that_is_called_as_a_branch_of_a_union_is_named():
    assert said(check, {"samples": [{"text": "x", "str": 1}]}, ScoreRequest)[2]["field"] == "samples[0].str"


def test_what_is_right_becomes_the_record():
    assert check({"samples": [{"text": "x"}]}, ScoreRequest) == SCORED
    assert check({"samples": [{"text": "x", "finish_reason": "stop"}]}, ScoreRequest).samples[0].finish_reason == "stop"


# -- in few words -----------------------------------------------------------------------------------------------------------

WORDS = [
    ("Expected `int`, got `str` - at `$.a`", "a: must be a whole number, not a string", "a"),
    ("Expected `int | null`, got `float` - at `$.a`", "a: must be a whole number, not a fraction", "a"),
    ("Expected `str | array | null`, got `float` - at `$.a`", "a: must be a string or an array, not a number", "a"),
    (
        "Expected `str | object | array`, got `null` - at `$.a`",
        "a: must be a string, an object or an array, not null",
        "a",
    ),
    ("Expected `str` of length <= 2 - at `$.a`", "a: must have at most 2 characters", "a"),
    ("Expected `array` of length >= 2 - at `$.a`", "a: must have at least 2 items", "a"),
    ("Expected `float` <= 5.0 - at `$.a`", "a: must be at most 5.0", "a"),
    ("Expected `array` of length 2, got 1 - at `$.a`", "a: Expected `array` of length 2, got 1", "a"),
    ("Invalid enum value 'secret' - at `$.a`", "a: must be one of the accepted values", "a"),
    ("Object missing required field `b` - at `$.a[0]`", "a[0].b: this field is missing", "a[0].b"),
    ("Input is wrong 'secret'", "$: Input is wrong", "$"),
    ("Input is wrong - at `X.aX`", "X.aX: Input is wrong", "X.aX"),
    ("a - at b - at `$.c`", "c: a - at b", "c"),
    ("w" * 300 + " - at `$." + "k" * 300 + "`", "k" * 118 + ": " + "w" * 200, "k" * 118),
]


@pytest.mark.parametrize(("message", "what", "field"), WORDS)
def test_words_of_the_library_lose_what_was_written_and_are_bounded(message, what, field):
    found = validation.invalid_request(msgspec.ValidationError(message))
    assert (type(found), found.message, found.details) == (InvalidRequest, what, {"field": field})


def test_plain_values_become_records_or_are_refused_with_the_path():
    assert convert({"samples": [{"text": "x"}]}, ScoreRequest) == SCORED
    assert said(convert, {"samples": [{"text": 5}]}, ScoreRequest) == (
        InvalidRequest, "samples[0].text: must be a string, not a number", {"field": "samples[0].text"},
    )  # fmt: skip
    assert said(convert, {"samples": [{"text": "x", "\ud800": 1}]}, ScoreRequest) == (
        InvalidRequest, "a text holds a lone surrogate", {"field": "$"},
    )  # fmt: skip
    deep: dict = {}
    for _ in range(100_000):
        deep = {"inner": deep}
    assert said(convert, deep, Deep) == (InvalidRequest, "the body is nested too deeply", {"field": "$"})


class Deep(msgspec.Struct):
    inner: Deep | None = None


# -- mistyped fields --------------------------------------------------------------------------------------------------------

SAMPLE = {"prompt": "p", "response": "r"}
MISTYPED = [
    (ScoreRequest, {"samples": [{"prompt": "p", "respons": "secret"}]}, "samples[0].respons", "response"),
    (ScoreRequest, {"samples": [SAMPLE, {"promt": "secret", "response": "r"}]}, "samples[1].promt", "prompt"),
    (ScoreRequest, {"samples": [{"message": ["secret"]}]}, "samples[0].message", "messages"),
    (ScoreRequest, {"samples": [{"prompt": [{"role": "u", "content": "c", "name": "secret"}]}]}, "samples[0].prompt[0].name", None),
    (ScoreRequest, {"samples": [SAMPLE], "setp": "secret"}, "setp", "step"),
    (ScoreRequest, {"samples": [{"prompt": "p", "response": "r", "responses": ["secret"]}]}, "samples[0].responses", None),
    (ScoreRequest, {"samples": [{**SAMPLE, "tools": ["secret"]}]}, "samples[0].tools", None),
    (CompareRequest, {"comparisons": [{"prompt": "p", "responses": ["a", "b"], "idd": "secret"}]}, "comparisons[0].idd", "id"),
    (LoadRequest, {"model": "m", "shadwo": "secret"}, "shadwo", "shadow"),
    (PinRequest, {"run": "r", "version": None, "verzion": "secret"}, "verzion", None),
]  # fmt: skip


@pytest.mark.parametrize(("record", "value", "field", "meant"), MISTYPED)
@pytest.mark.parametrize("is_large", [False, True])
def test_a_mistyped_field_is_refused_with_the_field_that_was_probably_meant(record, value, field, meant, is_large):
    _, words, details = said(convert if is_large else check, value, record)
    assert words.endswith(f"; did you mean `{meant}`?") if meant else "did you mean" not in words
    assert details["field"] == field
    assert "secret" not in words


MISSING = [
    (ScoreRequest, {"sample": ["secret"]}, "sample", "samples"),
    (CompareRequest, {"comparison": "secret"}, "comparison", "comparisons"),
    (CompareRequest, {"comparisons": [{"prompt": "p", "response": ["secret"]}]}, "response", "responses"),
    (CompareRequest, {"comparisons": [{"promt": "secret", "responses": ["a", "b"]}]}, "promt", "prompt"),
    (ScoreRequest, {"samples": [{"messages": [{"role": "user", "contents": "secret"}]}]}, "contents", "content"),
    (PinRequest, {"run": "r", "verzion": "secret"}, "verzion", "version"),
]  # fmt: skip


@pytest.mark.parametrize(("record", "value", "given", "meant"), MISSING)
def test_a_missing_field_is_named_with_the_field_that_may_be_it(record, value, given, meant):
    words = message(check, value, record)
    assert words.endswith(f"{meant}: this field is missing; the body has `{given}`: did you mean `{meant}`?")
    assert "secret" not in words


@pytest.mark.parametrize("value", [{}, {"run": "r"}, {"zzz": 1}, {"samples": [{}], "a" * 1000: 1}, {"s" * 41: 1}])
@pytest.mark.parametrize("call", [check, convert])
def test_a_field_without_a_near_name_gets_no_suggestion(value, call):
    assert "did you mean" not in message(call, value, ScoreRequest)


@pytest.mark.parametrize("name", ["samples`" * 4, "samples\n", "sampl\u0000es", "s" * 40, "samples"[:6] * 6])
def test_a_suggestion_is_short_whatever_a_field_is_called(name):
    words = message(check, {name: "secret"}, ScoreRequest)
    assert len(words) < 200
    assert "secret" not in words


LONG = {("samples" * 2000)[: 9000 + i]: i for i in range(60)}
MANY = {f"samples{i}": i for i in range(10_000)}


@pytest.mark.parametrize(("call", "value", "n"), [(check, LONG, 0), (convert, LONG, 0), (convert, MANY, 64)])
def test_long_names_and_more_than_some_are_not_compared(call, value, n, monkeypatch):
    """Comparing names takes time by the product of their lengths."""
    compared = []
    monkeypatch.setattr(validation, "nearest_word", lambda word, others: compared.append(others))
    message(call, value, CompareRequest if value is LONG else ScoreRequest)
    message(nemo_gym.VERIFY.read, value)
    assert max(len(others) for others in compared) == n


NAMES_LIKE_PATHS = ["a` - at `$.samples[99]", "a` - at `$.nowhere", "a` - at `$.samples", "a` - at `$[0]", "` - at `"]


@pytest.mark.parametrize("name", NAMES_LIKE_PATHS)
def test_a_field_that_is_called_as_a_path_is_an_unknown_field(name):
    assert said(convert, {"samples": [SAMPLE], name: 1}, ScoreRequest)[0] is InvalidRequest
    content = json.dumps({"samples": [SAMPLE], name: 1}).encode() + b" " * 70_000
    assert said(body.decode, content, msgspec.json.Decoder(ScoreRequest))[0] is InvalidRequest


# -- mistyped fields in other wire formats ----------------------------------------------------------------------------------

OF_DIALECTS = [
    (slime.SLIME, {"prompt": "p", "respons": "secret"}, "response", "respons"),
    (openrlhf.GET_REWARD, {"querry": ["secret"]}, "query", "querry"),
    (nemo_gym.VERIFY, {"responses_create_params": {}, "respons": {"a": "secret"}}, "response", "respons"),
    (nemo_gym.VERIFY, {"responses_params": {"a": "secret"}, "response": {}}, "responses_create_params", "responses_params"),
]  # fmt: skip


@pytest.mark.parametrize(("dialect", "value", "missing", "given"), OF_DIALECTS)
def test_a_body_without_its_texts_is_refused_with_the_field_that_may_be_one(dialect, value, missing, given):
    words = message(dialect.read, value)
    assert words.endswith(f"; the body has `{given}`: did you mean `{missing}`?")
    assert "secret" not in words


def test_a_field_that_another_format_refuses_is_refused_with_the_field_that_was_probably_meant():
    words = message(vllm.CLASSIFY.read, {"input": ["a"], "truncate_promt_tokens": 5})
    assert words.endswith("; did you mean `truncate_prompt_tokens`?")
    tensor = {"name": "sentences", "shape": [1], "data": ["secret"], "data_type": "BYTES"}
    assert message(kserve.INFER.read, {"inputs": [tensor]}).startswith("inputs[0].data_type: ")
    assert message(kserve.INFER.read, {"inputs": [tensor]}).endswith("; did you mean `datatype`?")
    assert "did you mean" not in message(vllm.CLASSIFY.read, {"input": ["a"], "zzz": 5})


def test_a_format_that_may_have_any_field_ignores_near_names():
    episode = {"responses_create_params": {"input": "p"}, "response": {"output": []}, "respons": 1, "mask_sampel": True}
    assert nemo_gym.VERIFY.read(episode)[1] == episode


def test_a_text_that_is_null_is_not_suggested_for_itself():
    for value in ({"responses_create_params": None, "response": {}}, {"responses_create_params": {}, "response": None}):
        assert "did you mean" not in message(nemo_gym.VERIFY.read, value)

"""Decoded JSON: which values become a request, and in which words and with which path the others are refused."""

from __future__ import annotations

import json

import msgspec
import pytest

from rewardserve.service.api import body, validation
from rewardserve.service.api.dialects import kserve, nemo_gym, openrlhf, slime, vllm
from rewardserve.service.api.requests import CompareRequest, SampleIn, ScoreRequest
from rewardserve.service.api.routes.admin import LoadRequest, PinRequest
from rewardserve.service.api.validation import NOT_READ, check, convert
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

WRONG = [
    ({}, "samples: Field required", "samples", 1),
    ([], "$: Input should be a valid dictionary or instance of ScoreRequest", "$", 1),
    ({"samples": []}, "samples: List should have at least 1 item after validation, not 0", "samples", 1),
    ({"samples": [{"tools": []}]}, f"samples[0].tools: {NOT_READ}", "samples[0].tools", 1),
    ({"samples": [{"text": 5}, {"text": "x"}]}, "samples[0].text: Input should be a valid string", "samples[0].text", 1),
    ({"samples": [{"prompt": [{"role": "user", "content": 1}]}]}, "samples[0].prompt[0].content: Input should be a valid string",
     "samples[0].prompt[0].content", 2),
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
    ("Expected `int`, got `str` - at `$.a`", "Expected `int`, got `str`", "$.a"),
    ("Invalid enum value 'secret' - at `$.a`", "Invalid enum value", "$.a"),
    ("Input is wrong", "Input is wrong", "$"),
    ("Input is wrong - at `X.aX`", "Input is wrong", "X.aX"),
    ("a - at b - at `$.c`", "a - at b", "$.c"),
    ("w" * 300 + " - at `$." + "k" * 300 + "`", "w" * 200, "$." + "k" * 118),
]


@pytest.mark.parametrize(("message", "what", "field"), WORDS)
def test_words_of_the_library_lose_what_was_written_and_are_bounded(message, what, field):
    found = validation.invalid_request(msgspec.ValidationError(message))
    assert (type(found), found.message, found.details) == (InvalidRequest, what, {"field": field})


def test_plain_values_become_records_or_are_refused_with_the_path():
    assert convert({"samples": [{"text": "x"}]}, ScoreRequest) == SCORED
    assert said(convert, {"samples": [{"text": 5}]}, ScoreRequest) == (
        InvalidRequest, "Expected `str | null`, got `int`", {"field": "$.samples[0].text"},
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
    assert details["field"] == (f"$.{field}".rpartition(".")[0] if is_large else field)
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
    assert words.endswith(f"{meant}: Field required; the body has `{given}`: did you mean `{meant}`?")
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
    assert message(kserve.INFER.read, {"inputs": [tensor]}).endswith("`data_type`; did you mean `datatype`?")
    assert "did you mean" not in message(vllm.CLASSIFY.read, {"input": ["a"], "zzz": 5})


def test_a_format_that_may_have_any_field_ignores_near_names():
    episode = {"responses_create_params": {"input": "p"}, "response": {"output": []}, "respons": 1, "mask_sampel": True}
    assert nemo_gym.VERIFY.read(episode)[1] == episode


def test_a_text_that_is_null_is_not_suggested_for_itself():
    for value in ({"responses_create_params": None, "response": {}}, {"responses_create_params": {}, "response": None}):
        assert "did you mean" not in message(nemo_gym.VERIFY.read, value)

"""Responses of a policy over OpenAI's API: requests, replies, retries and refusals, with a server on the loopback."""

from __future__ import annotations

import asyncio

import pytest

from rewardserve.mine.policy import PolicyError, PolicySettings, completions_url, sample_policy
from tests.support.policy_server import policy


def sampled(url, prompts, key="", **settings):
    return asyncio.run(sample_policy(PolicySettings(url=url, **settings), prompts, key, backoff_s=0.001))


def reason_of(url, prompts=("p",), **settings) -> str:
    with pytest.raises(ExceptionGroup) as error:
        sampled(url, list(prompts), **settings)
    (first, *_) = error.value.exceptions
    assert isinstance(first, PolicyError)
    return str(first)


def chat(texts, reason="stop"):
    return 200, {"choices": [{"message": {"role": "assistant", "content": t}, "finish_reason": reason} for t in texts]}


def test_chat_gets_messages_and_gives_n_responses_in_the_order_of_the_prompts():
    def answer(_, body):
        return chat([f"{body['messages'][-1]['content']} {i}" for i in range(body["n"])])

    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "second"}]
    with policy(answer) as (url, seen):
        found = sampled(url, ["first", turns], "secret", n=3, model="m", temperature=0.5, max_tokens=7)
    assert [[r["response"] for r in of] for of in found] == [
        [f"{p} {i}" for i in range(3)] for p in ("first", "second")
    ]
    path, key, body = next(each for each in seen if each[2]["messages"][0]["content"] == "first")
    assert (path, key) == ("/v1/chat/completions", "Bearer secret")
    assert body == {
        "model": "m", "n": 3, "temperature": 0.5, "max_tokens": 7, "seed": 0, "messages": [{"role": "user", "content": "first"}],
    }  # fmt: skip
    assert any(each[2]["messages"] == turns for each in seen)


def test_text_completions_get_a_text_and_say_what_was_cut_off():
    def answer(_, body):
        return 200, {"choices": [{"text": body["prompt"] + "!", "finish_reason": "length"}] * body["n"]}

    with policy(answer) as (url, _):
        found = sampled(f"{url}/completions", ["p"], n=2)
        assert found == [[{"response": "p!", "finish_reason": "length"}] * 2]
        assert "needs /chat/completions" in reason_of(f"{url}/completions", [[{"role": "user", "content": "p"}]])


def test_a_server_that_gives_one_response_a_request_is_asked_until_there_are_n_with_other_seeds():
    with policy(lambda number, _: chat([f"text {number}"])) as (url, seen):
        (found,) = sampled(url, ["p"], n=3)
    assert [each["response"] for each in found] == ["text 1", "text 2", "text 3"]
    assert [each[2]["seed"] for each in seen] == [0, 1, 2]
    assert [each[2]["n"] for each in seen] == [3, 2, 1]


def test_a_busy_server_is_asked_again_and_a_refusal_is_told():
    with policy(lambda number, _: (503, {}) if number < 3 else chat(["a", "b"])) as (url, seen):
        assert len(sampled(url, ["p"], n=2)[0]) == 2
        assert len(seen) == 3
    with policy(lambda *_: (404, {"error": "no such model"})) as (url, seen):
        assert 'answers 404: {"error": "no such model"}' in reason_of(url)
        assert len(seen) == 1
    with policy(lambda *_: (503, b"busy")) as (url, seen):
        assert "answers 503: busy" in reason_of(url)
        assert len(seen) == 5


@pytest.mark.parametrize("value", [b"<html>", {"choices": []}, {"result": 1}, [1], {"choices": [{"delta": 1}]}])
def test_a_server_of_another_api_is_named(value):
    with policy(lambda *_: (200, value)) as (url, _):
        assert "without" in reason_of(url)


def test_a_server_that_is_not_there_is_named():
    assert "http://127.0.0.1:9/chat/completions cannot be reached" in reason_of("http://127.0.0.1:9")


def test_the_url_may_name_the_api():
    assert completions_url("http://h/v1/") == "http://h/v1/chat/completions"
    assert completions_url("http://h/v1/completions") == "http://h/v1/completions"
    assert completions_url("http://h/v1/chat/completions") == "http://h/v1/chat/completions"

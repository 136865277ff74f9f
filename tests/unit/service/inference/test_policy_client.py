"""A turn of the policy is text from the configured server, in time and within bounds, or an error and never a text."""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest

from rewardserve.model.conversation import Message
from rewardserve.service.errors import PolicyFailed
from rewardserve.service.inference.policy_client import PolicyClient, PolicyLimits

ASKED = (Message("user", "Why?"), Message("assistant", "Because."), Message("user", "And then?"))


class Outcomes(list):
    def observe_policy_request(self, outcome):
        self.append(outcome)


def completion(content, finish_reason="stop"):
    return {"choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": finish_reason}]}


def ask(answer, **limits):
    """Ask once; return the turn or the error, the outcome, and the requests that were sent."""
    sent, outcomes = [], Outcomes()

    async def handler(request):
        sent.append(request)
        reply = answer(request)
        return await reply if asyncio.iscoroutine(reply) else reply

    async def run():
        bounds = PolicyLimits(**{"timeout_s": 5.0, "max_tokens": 7, "max_bytes": 1000, "max_requests": 2, **limits})
        client = PolicyClient(
            "http://policy:8000/v1/", "ppo-7", bounds, outcomes, key="secret", transport=httpx.MockTransport(handler)
        )
        try:
            return await client.next_turn(ASKED)
        except PolicyFailed as error:
            return error
        finally:
            await client.close()

    return asyncio.run(run()), outcomes, sent


def test_the_policy_gets_the_conversation_and_its_text_is_the_turn():
    turn, outcomes, (request,) = ask(lambda _: httpx.Response(200, json=completion("Then this.", "length")))
    assert (turn.text, turn.is_cut, outcomes) == ("Then this.", True, ["ok"])
    assert str(request.url) == "http://policy:8000/v1/chat/completions"
    assert request.headers["authorization"] == "Bearer secret"
    body = json.loads(request.content)
    assert (body["model"], body["max_tokens"]) == ("ppo-7", 7)
    assert [each["content"] for each in body["messages"]] == ["Why?", "Because.", "And then?"]


async def late():
    await asyncio.sleep(60)


def refuse(request):
    raise httpx.ConnectError("nothing listens", request=request)


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (lambda _: httpx.Response(302, headers={"location": "http://169.254.169.254/"}), "status"),
        (lambda _: httpx.Response(500, text="secret text"), "status"),
        (lambda _: httpx.Response(200, text="no JSON"), "invalid"),
        (lambda _: httpx.Response(200, json=completion(None)), "invalid"),
        (lambda _: httpx.Response(200, json=completion("  ")), "invalid"),
        (lambda _: httpx.Response(200, json={"choices": []}), "invalid"),
        (lambda _: httpx.Response(200, json=[1]), "invalid"),
        (lambda _: httpx.Response(200, json=completion("x" * 2000)), "too_large"),
        (lambda _: late(), "timeout"),
        (refuse, "unreachable"),
    ],
)
def test_a_policy_without_a_text_is_an_error_that_quotes_nothing(answer, outcome):
    error, outcomes, sent = ask(answer, timeout_s=0.2)
    assert isinstance(error, PolicyFailed)
    assert outcomes == [outcome]
    assert len(sent) == 1, "redirects are not followed"
    assert "secret" not in error.message

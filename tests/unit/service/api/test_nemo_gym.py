"""Episodes of NeMo-Gym that have no answer: each is a failure of its sample, none is scored as an empty answer."""

from __future__ import annotations

import pytest

from model.conversation import InvalidMessages, Sample
from service.api.dialects.nemo_gym import VERIFY

SAID = [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "yo"}]}]


def ask(response, **asked):
    body = {"responses_create_params": {"input": "hi", **asked}, "response": {"output": SAID, **response}}
    form, episode = VERIFY.read(body)
    (found,) = form.ask(episode, None)
    return found


@pytest.mark.parametrize(
    "response", [{}, {"status": None}, {"status": "completed", "error": None}, {"status": "incomplete"}]
)
def test_an_answer_is_scored(response):
    assert isinstance(ask(response), Sample)


@pytest.mark.parametrize(
    "response",
    [
        {"status": "failed", "error": {"code": "server_error", "message": "x"}, "output": []},
        {"status": "cancelled"},
        {"status": "in_progress"},
        {"error": {"code": "server_error"}},
        {"status": ["completed"]},
    ],
)
def test_a_response_that_failed_or_did_not_end_is_no_answer(response):
    assert isinstance(ask(response), InvalidMessages)


def test_instructions_that_are_no_text_are_not_left_out():
    assert isinstance(ask({}, instructions=["be brief"]), InvalidMessages)

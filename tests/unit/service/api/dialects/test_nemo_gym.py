"""Episodes of NeMo-Gym that have no answer: each is a failure of its sample, none is scored as an empty answer."""

from __future__ import annotations

import pytest

from rewardserve.model.conversation import EmptyResponse, InvalidMessages, Message, Sample
from rewardserve.service.api.dialects.nemo_gym import VERIFY
from rewardserve.service.errors import InvalidRequest

SAID = [{"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "yo"}]}]


def ask(response, **asked):
    body = {"responses_create_params": {"input": "hi", **asked}, "response": {"output": SAID, **response}}
    form, episode = VERIFY.read(body)
    (found,) = form.to_samples(episode, None)
    return found


@pytest.mark.parametrize(
    ("response", "finish"),
    [
        ({}, "stop"),
        ({"status": None}, "stop"),
        ({"status": "completed", "error": None}, "stop"),
        ({"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}, "length"),
    ],
)
def test_an_answer_is_scored(response, finish):
    turns = (Message("user", "hi"), Message("assistant", "yo"))
    assert ask(response) == Sample(messages=turns, finish_reason=finish)


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
    failed = ask(response)
    assert isinstance(failed, InvalidMessages)
    assert failed.message == "the policy's response failed or did not end: there is nothing to score"


def test_instructions_that_are_no_text_are_not_left_out():
    failed = ask({}, instructions=["be brief"])
    assert isinstance(failed, InvalidMessages)
    assert failed.message == "instructions must be a text"


REASONING = {"type": "reasoning", "summary": []}
MESSAGE = {"type": "message", "role": "assistant"}


@pytest.mark.parametrize(
    "output",
    [
        [],
        [REASONING],
        [MESSAGE | {"content": []}],
        [MESSAGE | {"content": ""}],
        [MESSAGE | {"content": " \n"}],
        [REASONING, MESSAGE | {"content": [{"type": "output_text", "text": ""}]}],
    ],
)
@pytest.mark.parametrize("more", [{}, {"status": "incomplete", "incomplete_details": {"reason": "max_output_tokens"}}])
def test_an_empty_answer_has_no_score(output, more):
    sample = ask({"output": output, **more})
    with pytest.raises(EmptyResponse):
        sample.conversation()


@pytest.mark.parametrize("wrong", [[], {}, [["message"]], 5, True])
def test_a_type_of_an_item_or_part_that_is_no_text_is_named(wrong):
    part = {"type": wrong, "text": "yo"}
    for response, asked, field in (
        ({"output": [MESSAGE | {"type": wrong, "content": "yo"}]}, {}, "response.output[0].type"),
        ({"output": [MESSAGE | {"content": [part]}]}, {}, "messages[1].content[0].type"),
        ({}, {"input": [{"role": "user", "content": [part]}]}, "messages[0].content[0].type"),
        ({}, {"input": [{"type": wrong, "role": "user", "content": "hi"}]}, "responses_create_params.input[0].type"),
    ):
        with pytest.raises(InvalidRequest) as refused:
            ask(response, **asked)
        assert refused.value.details["field"] == field


def read_mask(**columns):
    body = {"responses_create_params": {"input": "hi"}, "response": {"output": SAID}, **columns}
    form, episode = VERIFY.read(body)
    return form.to_samples(episode, None)


@pytest.mark.parametrize("mask", [1, 0, "true", "", [], {}, 1.0])
def test_a_mask_that_is_no_bool_is_refused(mask):
    for columns, field in (
        ({"mask_sample": mask}, "mask_sample"),
        ({"instance_config": {"mask_sample": mask}}, "instance_config.mask_sample"),
    ):
        with pytest.raises(InvalidRequest) as refused:
            read_mask(**columns)
        assert refused.value.details["field"] == field


@pytest.mark.parametrize("config", ["cfg-7", [1, 2], 5, False, ""])
def test_a_configuration_that_cannot_hold_the_mask_is_refused_and_not_overwritten(config):
    with pytest.raises(InvalidRequest) as refused:
        read_mask(instance_config=config)
    assert refused.value.details["field"] == "instance_config"


@pytest.mark.parametrize("mask", [True, False, None])
def test_a_mask_may_be_a_bool_or_null(mask):
    assert read_mask(mask_sample=mask, instance_config={"mask_sample": mask})
    assert read_mask(instance_config=None)

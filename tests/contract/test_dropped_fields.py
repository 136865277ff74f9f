"""No field that could change the text that is scored is dropped in silence: it is refused, on every route, by its name."""

from __future__ import annotations

import json
import re

import pytest

from rewardserve.service.api.dialects import DIALECTS
from tests.support.empty_values import EMPTY as EMPTY_VALUES
from tests.support.service_server import ROOT, Server

USER = {"role": "user", "content": "Why?"}
ANSWER = {"role": "assistant", "content": "Because."}
TEXT = "Why?\nBecause."
CALL = {"id": "1", "type": "function", "function": {"name": "delete_all_files", "arguments": '{"path": "/"}'}}
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {}}}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}


@pytest.fixture(scope="module")
def server():
    with Server("--backend=echo", "echo", "--cap-low=-9", "--cap-high=9", "--normalize=off") as running:
        yield running


def sentences(**more):
    return {"inputs": [{"name": "sentences", "shape": [1], "datatype": "BYTES", "data": [TEXT], **more}]}


def episode(asked=None, output=None, **more):
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Because."}]}
    return {
        "responses_create_params": {"input": [USER], **(asked or {})},
        "response": {"object": "response", "output": [{**said, **(output or {})}], **more},
    }


BODIES = {
    "/score": {"samples": [{"messages": [USER, ANSWER]}]},
    "/compare": {"comparisons": [{"prompt": [USER], "responses": ["Because.", "No."]}]},
    "/approvals": {"run": "ppo-7", "groups": [{"prompt": [USER], "queries": ["Because."]}]},
    "/get_reward": {"query": [TEXT], "prompts": ["Why?\n"]},
    "/slime": {"prompt": [USER], "response": "Because."},
    "/v1/score/evaluation": {"messages": [TEXT]},
    "/classify": {"messages": [USER, ANSWER]},
    "/v1/classify": {"text": TEXT},
    "/pooling": {"messages": [USER, ANSWER]},
    "/v1/embeddings": {"input": TEXT},
    "/v1/score": {"text_1": "Why?", "text_2": "Because."},
    "/rerank": {"query": "Why?", "documents": ["Because.", "No."]},
    "/v1/rerank": {"query": "Why?", "documents": ["Because.", "No."]},
    "/v2/rerank": {"query": "Why?", "documents": ["Because.", "No."]},
    "/predict": {"inputs": TEXT},
    "/v2/models/reward_model/infer": sentences(),
    "/v2/models/reward_model/versions/1/infer": sentences(),
    "/verify": episode(),
}
OF_A_REQUEST = {
    "tools": [TOOL],
    "functions": [{"name": "f"}],
    "chat_template_kwargs": {"enable_thinking": False},
    "chat_template": "{{ messages }}",
    "enable_thinking": False,
    "reasoning_effort": "high",
    "images": ["AA"],
    "image_data": "AA",
    "audio_data": "AA",
    "input_embeds": [[0.5]],
    "lora_path": "other",
    "anything_new": 1,
}
EMPTY = [value for value in EMPTY_VALUES if "nan" not in repr(value)]  # JSON has no NaN


def known(path):
    return "/v2/models/{model:path}" + path.removeprefix("/v2/models/reward_model") if "reward_model" in path else path


def test_every_route_that_scores_is_here():
    paths = {each.path.replace("{model:path}", "reward_model").replace("{version}", "1") for each in DIALECTS}
    assert paths | {"/score", "/compare", "/approvals"} == set(BODIES)


def ask(server, path, body):
    return server.client.post(path, json=body)


@pytest.mark.parametrize("path", BODIES)
def test_the_bodies_are_scored(server, path):
    assert ask(server, path, BODIES[path]).status_code == 200, ask(server, path, BODIES[path]).text


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("field", OF_A_REQUEST)
def test_a_field_of_a_request_that_is_not_read_is_refused_by_name(server, path, field):
    if path == "/verify":
        return  # the columns of a data set stand beside an episode; see below
    reply = ask(server, path, {**BODIES[path], field: OF_A_REQUEST[field]})
    assert reply.status_code == 422, reply.text
    assert field in reply.text
    assert "leave" in reply.text
    assert "retry-after" not in reply.headers


@pytest.mark.parametrize("path", [path for path in BODIES if path not in ("/score", "/compare", "/approvals")])
@pytest.mark.parametrize("value", EMPTY, ids=repr)
def test_a_field_that_says_nothing_is_let_through(server, path, value):
    for field in ("tools", "documents_", "images", "anything_new"):
        assert ask(server, path, {**BODIES[path], field: value}).status_code == 200
    spaced = json.dumps({**BODIES[path], "tools": []}).replace('"tools": []', '"tools": [   ]')
    reply = server.client.post(path, content=spaced, headers={"content-type": "application/json"})
    assert reply.status_code == 200


@pytest.mark.parametrize("dialect", DIALECTS, ids=lambda each: each.path)
def test_the_fields_of_a_format_that_change_no_score_are_let_through(server, dialect):
    path = dialect.path.replace("{model:path}", "reward_model").replace("{version}", "1")
    plain = ask(server, path, BODIES[path]).json()
    form, _ = dialect.read(BODIES[path])
    for field in form.ignored_fields or ():
        reply = ask(server, path, {**BODIES[path], field: {"x": 1} if field == "parameters" else "x"})
        assert reply.status_code == 200, reply.text
        assert numbers(reply.json()) == numbers(plain)


def numbers(reply):
    """All scores of a reply, in whatever shape."""
    return re.findall(
        r'"(?:score|relevance_score|reward|raw_reward)": (-?[\d.e-]+)|"(?:probs|embedding|scores|rewards)": (\[[^]]*\])',
        json.dumps(reply),
    )


# -- messages ----------------------------------------------------------------------------------------------------------

OF_A_MESSAGE = {
    "tool_calls": [CALL],
    "function_call": {"name": "delete_all_files", "arguments": "{}"},
    "tool_call_id": "1",
    "name": "Ada",
    "reasoning_content": "hm",
    "reasoning": "hm",
    "thinking": "hm",
    "refusal": "no",
    "audio": {"id": "a"},
    "tools": [TOOL],
    "prefix": True,
    "anything_new": 1,
}
WITH_MESSAGES = {
    "/score": lambda first, last: {"samples": [{"messages": [first, last]}]},
    "/score, prompt": lambda first, _: {"samples": [{"prompt": [first], "response": "Because."}]},
    "/compare": lambda first, _: {"comparisons": [{"prompt": [first], "responses": ["Because.", "No."]}]},
    "/slime": lambda first, _: {"prompt": [first], "response": "Because."},
    "/classify": lambda first, last: {"messages": [first, last]},
    "/pooling": lambda first, last: {"messages": [first, last]},
    "/verify": lambda first, last: episode(
        {"input": [first]}, {k: v for k, v in last.items() if k not in ("role", "content")}
    ),
}


def refused(server, route, body, field):
    reply = ask(server, route.partition(",")[0], body)
    if route == "/verify" and reply.status_code == 200:
        assert reply.json()["mask_sample"]
        assert reply.json()["error"]["code"] == "unsupported_field"
    else:
        assert reply.status_code == 422, reply.text
    assert field in reply.json().get("error", {}).get("message", ""), reply.text
    assert "template" in reply.text, "the remedy is to render it"


@pytest.mark.parametrize("field", OF_A_MESSAGE)
@pytest.mark.parametrize("route", WITH_MESSAGES)
def test_a_field_of_a_message_that_is_not_read_is_refused_by_name(server, route, field):
    extra = {field: OF_A_MESSAGE[field]}
    refused(server, route, WITH_MESSAGES[route](USER | extra, ANSWER), field)
    if "first, last" in str(WITH_MESSAGES[route].__code__.co_varnames) or route in ("/classify", "/pooling", "/verify"):
        refused(server, route, WITH_MESSAGES[route](USER, ANSWER | extra), field)
        if route != "/verify":
            refused(server, route, WITH_MESSAGES[route](USER, ANSWER | {"content": ""} | extra), field)
            refused(server, route, WITH_MESSAGES[route](USER, ANSWER | {"content": None} | extra), field)


@pytest.mark.parametrize("route", [route for route in WITH_MESSAGES if route[:6] not in ("/score", "/compa")])
def test_a_message_with_empty_fields_is_what_it_is_without(server, route):
    path = route.partition(",")[0]
    plain = ask(server, path, WITH_MESSAGES[route](USER, ANSWER)).json()
    for value in EMPTY:
        extra = dict.fromkeys(OF_A_MESSAGE, value)
        reply = ask(server, path, WITH_MESSAGES[route](USER | extra, ANSWER | extra))
        assert reply.status_code == 200, reply.text
        assert numbers(reply.json()) == numbers(plain)


@pytest.mark.parametrize("route", [route for route in WITH_MESSAGES if route[:6] not in ("/score", "/compa")])
def test_a_part_of_a_content_that_is_no_text_is_refused(server, route):
    for part in (PICTURE, {"type": "input_audio", "input_audio": {}}, {"type": "text", "text": "Why?", "image": "AA"}):
        body = WITH_MESSAGES[route](USER | {"content": [{"type": "text", "text": "Why?"}, part]}, ANSWER)
        reply = ask(server, route.partition(",")[0], body)
        if reply.status_code == 200:
            assert reply.json()["mask_sample"]
        else:
            assert reply.status_code == 422


# -- NeMo-Gym ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tools", [TOOL]),
        ("previous_response_id", "r"),
        ("conversation", "c"),
        ("prompt", {"id": "p"}),
        ("something_new", 1),
    ],
)
def test_what_is_asked_of_a_policy_beside_its_messages_is_refused(server, field, value):
    refused(server, "/verify", episode({field: value}), field)


def test_tools_of_a_response_are_refused(server):
    refused(server, "/verify", episode(tools=[TOOL]), "tools")


def test_what_is_asked_of_the_sampling_is_let_through(server):
    plain = ask(server, "/verify", episode()).json()
    asked = {
        "temperature": 0.7,
        "top_p": 1.0,
        "max_output_tokens": 9,
        "tool_choice": "auto",
        "tools": [],
        "store": True,
    }
    reply = ask(
        server, "/verify", {**episode(asked, {"id": "m", "status": "completed"}), "answer": "a column", "uuid": 7}
    )
    assert reply.json()["reward"] == plain["reward"]
    assert not reply.json()["mask_sample"]
    assert reply.json()["answer"] == "a column"


def test_a_tensor_that_is_not_read_is_refused(server):
    picture = {"name": "images", "shape": [1], "datatype": "BYTES", "data": ["AA"]}
    for body in (
        {"inputs": [*sentences()["inputs"], picture]},
        {"inputs": [*sentences()["inputs"], *sentences()["inputs"]]},
        sentences(anything_new=1),
    ):
        reply = ask(server, "/v2/models/reward_model/infer", body)
        assert reply.status_code == 422, reply.text
    assert (
        ask(server, "/v2/models/reward_model/infer", sentences(parameters={"binary_data_size": 3})).status_code == 200
    )


def test_documents_that_are_no_text_alone_are_refused(server):
    for document in ({"text": "Because.", "image": "AA"}, {"content": [{"type": "text", "text": "a"}, PICTURE]}):
        body = {"query": "Why?", "documents": [document]}
        assert ask(server, "/rerank", body).status_code == 422
    assert ask(server, "/rerank", {"query": "Why?", "documents": [{"text": "Because."}]}).status_code == 200


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_names_every_field_that_has_no_effect():
    page = (ROOT / "docs" / "how-to" / "trainers.md").read_text()
    for dialect in DIALECTS:
        for form in dialect.body_formats:
            for field in {*(form.ignored_fields or ()), *form.accepted_values}:
                assert f"`{field}`" in page, (dialect.path, field)

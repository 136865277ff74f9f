"""A list of nothing to score is refused on every route, but where the server or the clients whose format it is have it."""

from __future__ import annotations

import pytest

from tests.support.service_server import Server

NO_TENSOR = {"name": "sentences", "shape": [0, 1], "datatype": "BYTES", "data": []}
EMPTY = [
    ("/score", {"samples": []}, "samples"),
    ("/compare", {"comparisons": []}, "comparisons"),
    ("/get_reward", {"prompts": [], "responses": []}, "responses"),
    ("/v1/score/evaluation", {"messages": []}, "messages"),
    ("/classify", {"input": []}, "input"),
    ("/classify", {"text": []}, "text"),
    ("/classify", {"input_ids": []}, "input_ids"),
    ("/classify", {"messages": []}, "messages"),
    ("/v1/classify", {"input": []}, "input"),
    ("/pooling", {"input": []}, "input"),
    ("/v1/embeddings", {"input": []}, "input"),
    ("/v1/score", {"text_1": [], "text_2": []}, "text_1"),
    ("/v1/score", {"text_1": "a", "text_2": []}, "text_2"),
    ("/rerank", {"query": "a", "documents": []}, "documents"),
    ("/rerank", {"query": "a", "texts": []}, "texts"),
    ("/predict", {"inputs": []}, "inputs"),
    ("/v2/models/echo/infer", {"inputs": []}, "inputs"),
    ("/v2/models/echo/infer", {"inputs": [NO_TENSOR]}, "inputs"),
]


@pytest.fixture(scope="module")
def server():
    with Server("--backend=echo", "echo") as running:
        yield running


@pytest.mark.parametrize(("path", "body", "field"), EMPTY)
def test_an_empty_list_is_refused(server, path, body, field):
    reply = server.client.post(path, json=body)
    assert reply.status_code == 422, reply.text
    assert field in reply.text


def test_openrlhf_sends_empty_lists_to_all_urls_but_the_first_and_is_answered(server):
    reply = server.client.post("/get_reward", json={"query": [], "prompts": [], "labels": []})
    assert (reply.status_code, reply.json()) == (200, {"rewards": [], "scores": [], "extra_logs": {}})


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
def test_sglang_answers_no_items_with_no_scores(server, path):
    reply = server.client.post(path, json={"query": "a", "items": []})
    assert (reply.status_code, reply.json()["scores"]) == (200, [])


@pytest.mark.parametrize("ids", [["abc"], [["abc"]], [1, "a"], [[1], "a"], [True], [1.5], "abc", [[[1]]]])
def test_what_is_no_token_id_is_not_scored_as_text(server, ids):
    reply = server.client.post("/classify", json={"input_ids": ids})
    assert (reply.status_code, reply.json()["error"]["field"].removeprefix("$.")) == (422, "input_ids"), reply.text

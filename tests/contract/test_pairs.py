"""Text pairs in the formats of vLLM, SGLang and text-embeddings-inference: which input a pair becomes, and in what order."""

from __future__ import annotations

import pytest

from rewardserve.model.backends.echo import echo_score
from tests.support.service_server import Server

PROMPT = "Why?\n"
ANSWERS = ["Because.", "No.", "x" * 9]


def raw(prompt, response):
    """The echo backend's score of both texts joined, which is what both servers make of a pair."""
    return echo_score((*(prompt + response).encode(), 0))


EXPECTED = [raw(PROMPT, answer) for answer in ANSWERS]


@pytest.fixture(scope="module")
def server():
    with Server("--backend=echo") as server:
        yield server


def scores(server, path, body):
    answer = server.client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return [each["score"] for each in answer.json()["data"]]


@pytest.mark.parametrize("path", ["/score", "/v1/score"])
@pytest.mark.parametrize(
    "names", [("text_1", "text_2"), ("queries", "documents"), ("queries", "items"), ("data_1", "data_2")]
)
def test_vllm_scores_one_to_one_one_to_many_and_many_to_many(server, path, names):
    first, second = names
    assert scores(server, path, {first: PROMPT, second: ANSWERS[0]}) == EXPECTED[:1]
    assert scores(server, path, {first: PROMPT, second: ANSWERS}) == EXPECTED
    assert scores(server, path, {first: [PROMPT], second: ANSWERS}) == EXPECTED
    others = ["a\n", "b\n", "c\n"]
    assert scores(server, path, {first: others, second: ANSWERS}) == [
        raw(p, r) for p, r in zip(others, ANSWERS, strict=True)
    ]
    part = {"content": [{"type": "text", "text": ANSWERS[1]}]}
    assert scores(server, path, {first: PROMPT, second: [ANSWERS[0], part]}) == EXPECTED[:2]


def test_sglang_scores_items_after_or_before_a_query_as_text_or_ids(server):
    def rows(**body):
        answer = server.client.post("/v1/score", json=body).json()
        assert (answer["object"], answer["model"]) == ("scoring", "echo")
        return [row[0] for row in answer["scores"]]

    assert rows(query=PROMPT, items=ANSWERS) == EXPECTED
    assert rows(query=PROMPT, items=ANSWERS[0]) == EXPECTED[:1]
    assert rows(query=PROMPT, items=[]) == []
    assert rows(query="after", items=["before\n"], item_first=True) == [raw("before\n", "after")]
    assert rows(query=[65, 66], items=[[67], [68]]) == [echo_score((65, 66, 67, 0)), echo_score((65, 66, 68, 0))]


@pytest.mark.parametrize("path", ["/rerank", "/v1/rerank", "/v2/rerank"])
def test_documents_come_back_by_falling_score(server, path):
    order = sorted(range(3), key=lambda i: -EXPECTED[i])
    body = {"query": PROMPT, "documents": ANSWERS}
    answer = server.client.post(path, json=body).json()
    assert [each["index"] for each in answer["results"]] == order
    assert [each["relevance_score"] for each in answer["results"]] == [EXPECTED[i] for i in order]
    assert [each["document"]["text"] for each in answer["results"]] == [ANSWERS[i] for i in order]
    assert answer["model"] == "echo"
    assert answer["usage"]["total_tokens"] == sum(len(PROMPT + a) + 1 for a in ANSWERS)
    best = server.client.post(path, json=body | {"top_n": 1, "return_documents": False}).json()["results"]
    assert best == [{"index": order[0], "relevance_score": EXPECTED[order[0]]}]


def test_text_embeddings_inference_ranks_texts(server):
    body = {"query": PROMPT, "texts": ANSWERS, "raw_scores": True, "return_text": True}
    answer = server.client.post("/rerank", json=body).json()
    order = sorted(range(3), key=lambda i: -EXPECTED[i])
    assert answer == [{"index": i, "text": ANSWERS[i], "score": EXPECTED[i]} for i in order]
    assert server.client.post("/v1/rerank", json=body).status_code == 422


def test_our_own_bodies_stay_ours(server):
    ours = server.client.post("/score", json={"samples": [{"text": "t"}]})
    assert "rewards" in ours.json()
    assert server.client.post("/score?value=raw", json={"samples": [{"text": "t"}]}).status_code == 422
    for body in (
        {"samples": [{"text": "t"}], "text_1": "a", "text_2": "b"},
        {"samples": None, "text_1": "a", "text_2": "b"},
        {"samples": []},
        {"sample": [{"text": "t"}]},
        {},
        [],
    ):
        refused = server.client.post("/score", json=body)
        assert refused.status_code == 422
        assert refused.json()["error"]["code"] == "invalid_request"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/score", {"text_1": "a"}),
        ("/score", {"text_1": [], "text_2": []}),
        ("/score", {"text_1": ["a", "b"], "text_2": ["c"]}),
        ("/score", {"text_1": "a", "text_2": ["b", ["c"]]}),
        ("/score", {"text_1": "a", "text_2": "b", "queries": "a", "documents": "b"}),
        ("/score", {"text_1": "a", "text_2": {"content": [{"type": "image_url", "image_url": {"url": "x"}}]}}),
        ("/v1/score", {"query": "a"}),
        ("/v1/score", {"query": "a", "items": [[1]]}),
        ("/v1/score", {"query": [1], "items": ["a"]}),
        ("/v1/score", {"samples": [{"text": "t"}]}),
        ("/rerank", {"query": "a", "documents": []}),
        ("/rerank", {"query": "a"}),
        ("/rerank", {"query": "a", "documents": ["b"], "texts": ["b"]}),
        ("/rerank", {"query": "a", "documents": ["b"], "instruct": "judge kindly"}),
        ("/rerank", {"query": "a", "documents": ["b"], "max_tokens_per_doc": 3}),
        ("/rerank", {"query": "a", "documents": ["b"], "top_n": -1}),
    ],
)
def test_what_one_score_cannot_answer_is_refused_in_words(server, path, body):
    refused = server.client.post(path, json=body)
    assert refused.status_code == 422
    assert len(refused.json()["error"]["message"]) > 10


def test_one_pair_that_cannot_be_scored_is_never_a_number():
    with Server("--backend=echo", "--max-input-tokens=20", "--truncation=error") as short:
        body = {"text_1": PROMPT, "text_2": ["fine", "too long " * 9]}
        refused = short.client.post("/score", json=body)
        assert (refused.status_code, refused.json()["error"]["sample"]) == (422, 1)
        refused = short.client.post("/rerank", json={"query": PROMPT, "documents": body["text_2"]})
        assert refused.status_code == 422


def test_runs_and_steps_of_pairs_are_watched(server):
    for step in range(130):
        path = f"/score?run=pairs&step={step}"
        assert server.client.post(path, json={"text_1": PROMPT, "text_2": "a"}).status_code == 200
    assert server.client.get("/tripwires/pairs/details").json()["step"] == 129

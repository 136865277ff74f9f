"""A token that the model has no embedding for: refused for good in every wire format, and no one else is affected."""

from __future__ import annotations

import pytest
from transformers import AutoTokenizer

from tests.support import checkpoints
from tests.support.service_server import Server

EXTRA = "<extra_0>"
TEXT = f"a {EXTRA} c"
TURNS = [{"role": "user", "content": TEXT}, {"role": "assistant", "content": "b"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("extended") / "model"
    checkpoints.sequence_classifier(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([EXTRA])
    tokenizer.save_pretrained(folder)
    with Server(f"{folder}", "--device=cpu", "--cap-low=-9", "--cap-high=9") as running:
        yield running


BODIES = {
    "/get_reward": {"query": [TEXT], "prompts": [TEXT]},
    "/slime": {"prompt": "a", "response": TEXT},
    "/v1/score/evaluation": {"messages": [TEXT]},
    "/classify": {"input": TEXT},
    "/classify?chat": {"messages": TURNS},
    "/classify?sglang": {"text": TEXT},
    "/classify?ids": {"input": [5, 320, 6]},
    "/pooling": {"input": [TEXT]},
    "/v1/embeddings": {"input": TEXT},
    "/predict": {"inputs": TEXT},
    "/v1/classify": {"input": TEXT},
    "/score": {"text_1": "a", "text_2": TEXT},
    "/v1/score": {"query": "a", "items": [TEXT]},
    "/rerank": {"query": "a", "documents": [TEXT]},
    "/v2/models/reward_model/infer": {
        "inputs": [{"name": "sentences", "shape": [1], "datatype": "BYTES", "data": [TEXT]}]
    },
}


@pytest.mark.parametrize("route", BODIES)
def test_it_is_refused_for_good_and_a_dozen_of_them_change_nothing(server, route):
    path = route.partition("?")[0]
    for _ in range(12):
        reply = server.client.post(path, json=BODIES[route])
        assert reply.status_code == 422, reply.text
        assert "retry-after" not in reply.headers
        assert "embedding" in reply.text or "vocabulary" in reply.text
    assert server.client.get("/readyz").status_code == 200


def test_an_episode_of_nemo_gym_is_masked(server):
    said = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": TEXT}]}
    body = {"responses_create_params": {"input": "a"}, "response": {"output": [said]}}
    reply = server.client.post("/verify", json=body).json()
    assert reply["mask_sample"]
    assert reply["error"]["code"] == "token_out_of_vocabulary"


def test_on_our_own_routes_it_is_the_error_of_that_sample_alone(server):
    samples = [{"prompt": "a", "response": "b"}, {"prompt": TEXT, "response": "b"}, {"prompt": "a", "response": "b"}]
    reply = server.client.post("/score", json={"samples": samples}).json()
    assert [each is None for each in reply["rewards"]] == [False, True, False]
    assert reply["rewards"][0] == reply["rewards"][2]
    assert reply["results"][1]["error"]["code"] == "token_out_of_vocabulary"
    ranked = server.client.post("/compare", json={"comparisons": [{"prompt": "a", "responses": ["b", TEXT]}]}).json()
    assert ranked["results"][0]["error"]["code"] == "token_out_of_vocabulary"
    assert any(EXTRA in note for note in server.client.get("/model").json()["backend"]["engine_notes"])

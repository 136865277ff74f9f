"""Which number each wire format gives: by default, under `?value=`, and under its own word for an activation.

The reference is the number of our own route for the same ids, and the formula of a sigmoid. vLLM's `PoolerClassify` and
text-embeddings-inference's `Infer.predict` take a sigmoid of one label; SGLang's pooled logits are raw.
"""

from __future__ import annotations

import math

import pytest

from rewardserve.model.backends.echo import echo_score
from tests.contract.table import PROMPT, RESPONSE, TEXT
from tests.support.service_server import Server

EPISODE = {
    "responses_create_params": {"input": PROMPT.strip()},
    "response": {"output": [{"type": "message", "content": RESPONSE}]},
}
TENSOR = {"inputs": [{"name": "sentences", "shape": [1, 1], "datatype": "BYTES", "data": [TEXT]}]}
PAIR = {"text_1": PROMPT, "text_2": RESPONSE}
RANKED = {"query": PROMPT, "documents": [RESPONSE]}
TEI_RANKED = {"query": PROMPT, "texts": [RESPONSE]}

# Path and body; how its reply is read; the number by default; the word for an activation, and what that means.
FORMATS = {
    "OpenRLHF": ("/get_reward", {"query": [TEXT]}, lambda r: r["rewards"][0], "reward", None),
    "align-anything": (
        "/get_reward", {"prompts": [PROMPT], "responses": [RESPONSE]}, lambda r: r["rewards"][0], "reward", None
    ),
    "slime": ("/slime", {"prompt": PROMPT, "response": RESPONSE}, lambda r: r, "reward", None),
    "LLaMA-Factory": ("/v1/score/evaluation", {"messages": [TEXT]}, lambda r: r["scores"][0], "reward", None),
    "NeMo-Gym": ("/verify", EPISODE, lambda r: r["reward"], "reward", None),
    "vLLM classify": ("/classify", {"input": TEXT}, lambda r: r["data"][0]["probs"][0], "raw", "use_activation"),
    "vLLM classify, older": ("/classify", {"input": TEXT}, lambda r: r["data"][0]["probs"][0], "raw", "activation"),
    "vLLM classify, oldest": ("/classify", {"input": TEXT}, lambda r: r["data"][0]["probs"][0], "raw", "softmax"),
    "vLLM pooling": ("/pooling", {"input": TEXT}, lambda r: r["data"][0]["data"][0], "raw", "use_activation"),
    "vLLM score": ("/score", PAIR, lambda r: r["data"][0]["score"], "raw", "use_activation"),
    "vLLM v1/score": ("/v1/score", PAIR, lambda r: r["data"][0]["score"], "raw", "use_activation"),
    "vLLM rerank": ("/rerank", RANKED, lambda r: r["results"][0]["relevance_score"], "raw", "use_activation"),
    "SGLang classify": ("/classify", {"text": TEXT}, lambda r: r["embedding"][0], "raw", None),
    "SGLang v1/classify": ("/v1/classify", {"input": TEXT}, lambda r: r["data"][0]["probs"][0], "raw", None),
    "SGLang v1/score": ("/v1/score", {"query": PROMPT, "items": [RESPONSE]}, lambda r: r["scores"][0][0], "raw", None),
    "SGLang embeddings": ("/v1/embeddings", {"input": TEXT}, lambda r: r["data"][0]["embedding"][0], "raw", None),
    "KServe": ("/v2/models/echo/infer", TENSOR, lambda r: r["outputs"][0]["data"][0], "raw", None),
    "TEI predict": ("/predict", {"inputs": TEXT}, lambda r: r[0]["score"], "sigmoid", "not raw_scores"),
    "TEI rerank": ("/rerank", TEI_RANKED, lambda r: r[0]["score"], "sigmoid", "not raw_scores"),
}  # fmt: skip
by_format = pytest.mark.parametrize("name", FORMATS)


@pytest.fixture(scope="module")
def server():
    with Server("--backend=echo") as server:
        yield server


@pytest.fixture(scope="module")
def numbers(server):
    (result,) = server.score({"text": TEXT}).json()["results"]
    assert result["raw"] == echo_score((*TEXT.encode(), 0))
    numbers = {name: result[name] for name in ("raw", "normalized", "reward")}
    numbers["sigmoid"] = 1 / (1 + math.exp(-result["raw"]))
    assert len({round(number, 6) for number in numbers.values()}) >= 3  # so that they can be told apart
    return numbers


def asked(server, name, query="", **more):
    path, body, read, *_ = FORMATS[name]
    answer = server.client.post(path + query, json=body | more)
    assert answer.status_code == 200, answer.text
    return read(answer.json())


def activation(word, *, wanted):
    return {"raw_scores": not wanted} if word == "not raw_scores" else {word: wanted}


@by_format
def test_the_number_by_default(server, numbers, name):
    assert asked(server, name) == pytest.approx(numbers[FORMATS[name][3]], abs=1e-12)


@by_format
@pytest.mark.parametrize("value", ["raw", "normalized", "reward"])
def test_a_url_says_which_number_and_gets_it_as_it_is(server, numbers, name, value):
    assert asked(server, name, f"?value={value}") == pytest.approx(numbers[value], abs=1e-12)


@pytest.mark.parametrize("name", [name for name, row in FORMATS.items() if row[4] is not None])
def test_an_activation_is_a_sigmoid_of_the_raw_score(server, numbers, name):
    word = FORMATS[name][4]
    assert asked(server, name, **activation(word, wanted=True)) == pytest.approx(numbers["sigmoid"], abs=1e-12)
    assert asked(server, name, **activation(word, wanted=False)) == pytest.approx(numbers["raw"], abs=1e-12)
    assert asked(server, name, "?value=reward", **activation(word, wanted=False)) == numbers["reward"]
    path, body, *_ = FORMATS[name]
    both = server.client.post(f"{path}?value=raw", json=body | activation(word, wanted=True))
    assert both.status_code == 422
    assert "value" in both.text


def test_a_softmax_over_one_score_is_refused_and_never_a_constant_reward(server):
    body = {"query": PROMPT, "items": [RESPONSE]}
    refused = server.client.post("/v1/score", json=body | {"apply_softmax": True})
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "apply_softmax")
    refused = server.client.post("/v1/score", json=body | {"label_token_ids": [1, 2]})
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "label_token_ids")

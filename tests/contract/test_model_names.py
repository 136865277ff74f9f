"""A request that names another model than the one that would score it is refused; a reply names the one that scored."""

from __future__ import annotations

from urllib.parse import quote, unquote

import httpx
import pytest
from openai import NotFoundError, OpenAI

from tests.support.checkpoints import reward_model
from tests.support.service_server import Server

OTHER = "other/model-8b"
EPISODE = {
    "responses_create_params": {"input": "q", "model": "the-policy"},
    "response": {"output": [{"type": "message", "content": "a"}], "model": "the-policy"},
}
TENSOR = {"inputs": [{"name": "sentences", "shape": [1, 1], "datatype": "BYTES", "data": ["t"]}]}
BODIES = {
    "/classify": {"input": "t"},
    "/v1/classify": {"input": "t"},
    "/pooling": {"input": "t"},
    "/v1/embeddings": {"input": "t"},
    "/v1/score/evaluation": {"messages": ["t"]},
    "/predict": {"inputs": "t"},
    "/slime": {"prompt": "q", "response": "a"},
    "/get_reward": {"query": ["t"]},
    "/score": {"text_1": "q", "text_2": "a"},
    "/v1/score": {"query": "q", "items": ["a"]},
    "/rerank": {"query": "q", "documents": ["a"]},
    "/v1/rerank": {"query": "q", "documents": ["a"]},
    "/v2/rerank": {"query": "q", "documents": ["a"]},
}
by_route = pytest.mark.parametrize("path", BODIES)


@pytest.fixture(scope="module")
def server():
    with Server("--backend=echo", "--model-aliases=rm, /models/reward") as server:
        yield server


def post(server, path, **more):
    return server.client.post(path, json=BODIES[path] | more)


@by_route
def test_another_name_is_refused_with_404_and_scores_nothing(server, path):
    before = server.metric("rewardserve_samples_total", outcome="ok")
    refused = post(server, path, model=OTHER)
    assert refused.status_code == 404
    assert server.metric("rewardserve_samples_total", outcome="ok") == before
    reply_body = refused.json()
    if path == "/predict":
        assert reply_body["error_type"] == "validation"
        assert "echo" in reply_body["error"]
        assert reply_body["code"] == "model_not_served"
    else:
        error = reply_body["error"]
        assert (error["type"], error["param"], error["code"]) == ("NotFoundError", "model", 404)
        assert error["served_model"] == "echo"
        assert "REWARD_MODEL_ALIASES" in error["message"]
    assert OTHER not in refused.text


@by_route
@pytest.mark.parametrize("name", ["echo", "rm", "/models/reward", "default", "", None])
def test_the_served_name_an_alias_and_no_name_are_answered_with_the_served_name(server, path, name):
    answer = post(server, path, model=name)
    assert answer.status_code == 200
    assert answer.headers["x-model-name"] == "echo"
    reply_body = answer.json()
    assert not isinstance(reply_body, dict) or reply_body.get("model", "echo") == "echo"


OWN = {
    "/score": {"samples": [{"text": "hello"}]},
    "/compare": {"comparisons": [{"prompt": "p", "responses": ["a", "b"]}]},
}


@pytest.mark.parametrize("path", OWN)
def test_our_own_routes_name_the_model_in_headers_too(server, path):
    answer = server.client.post(path, json=OWN[path])
    reply_body = answer.json()
    assert (answer.headers["x-model-name"], answer.headers["x-model-version"]) == (
        "echo",
        str(reply_body["model_version"]),
    )
    assert (reply_body["model"], reply_body["model_version"]) == ("echo", 1)


@pytest.mark.parametrize("name", ["echo", "rm", "default"])
def test_a_name_that_is_good_for_scoring_is_good_for_questions_about_the_model(server, name):
    assert server.client.get(f"/v1/models/{name}").json()["id"] == "echo"
    assert server.client.get(f"/v2/models/{name}").json()["name"] == "echo"
    assert server.client.get(f"/v2/models/{name}/ready").status_code == 200
    assert server.client.get(f"/v2/models/{name}/versions/1/ready").status_code == 200
    assert server.client.post(f"/v2/models/{name}/infer", json=TENSOR).status_code == 200
    for path in (f"/v1/models/not-{name}", f"/v2/models/not-{name}/ready"):
        assert server.client.get(path).status_code == 404


@by_route
def test_a_digest_of_the_served_model_is_a_name_of_it(server, path):
    credits = server.client.get("/model").json()
    assert post(server, path, model=credits["contract"]).status_code == 200
    assert post(server, path, model="sha256:" + "0" * 64).status_code == 404


def test_the_name_that_llamafactory_always_sends_means_nothing(server):
    assert post(server, "/v1/score/evaluation", model="model").json()["model"] == "echo"
    assert post(server, "/classify", model="model").status_code == 404


def test_the_policy_named_by_an_episode_is_not_the_reward_model(server):
    answer = server.client.post("/verify", json=EPISODE)
    assert answer.status_code == 200
    assert answer.headers["x-model-name"] == "echo"


def test_openais_client_raises_its_own_error(server):
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        with pytest.raises(NotFoundError):
            client.embeddings.create(model=OTHER, input="t")
        with pytest.raises(NotFoundError) as error:
            client.models.retrieve(OTHER)
        assert error.value.code == "model_not_found"
        assert client.models.retrieve("rm").id == client.models.retrieve("echo").id == "echo"


# -- KServe -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["echo", "rm", "/models/reward", "reward_model"])
def test_kserve_answers_for_the_names_of_the_served_model(server, name):
    at = f"/v2/models/{quote(name, safe='')}"
    assert server.client.post(f"{at}/infer", json=TENSOR).json()["model_name"] == "echo"
    assert server.client.get(f"{at}/ready").json() == {"name": "echo", "ready": True}
    described = server.client.get(at).json()
    assert described["name"] == "echo"
    assert [each["name"] for each in described["inputs"]] == ["sentences"]
    (version,) = described["versions"]
    assert server.client.post(f"{at}/versions/{version}/infer", json=TENSOR).json()["model_version"] == version
    assert server.client.get(f"{at}/versions/{version}/ready").status_code == 200
    assert server.client.post(f"{at}/versions/99/infer", json=TENSOR).status_code == 404
    assert server.client.get(f"{at}/versions/99/ready").status_code == 404


def test_kserve_refuses_another_name_in_its_own_words(server):
    answers = [
        server.client.post(f"/v2/models/{OTHER}/infer", json=TENSOR),
        server.client.get(f"/v2/models/{OTHER}"),
        server.client.get(f"/v2/models/{OTHER}/ready"),
    ]
    for answer in answers:
        assert answer.status_code == 404
        assert isinstance(answer.json()["error"], str)
        assert answer.json()["code"] == "model_not_served"


def test_kserve_asks_for_the_health_of_the_server(server):
    assert server.client.get("/v2/health/live").json() == {"live": True}
    assert server.client.get("/v2/health/ready").json() == {"ready": True}
    assert server.client.get("/v2").json()["name"] == "rewardserve"


def test_kserve_is_told_that_a_server_is_not_ready(tmp_path):
    import os

    fifo = tmp_path / "gate"
    os.mkfifo(fifo)
    from tests.support.service_server import drill

    with drill(f"load-waits:{fifo}", wait_for=None) as loading:
        assert loading.client.get("/v2/health/live").status_code == 200
        for path in ("/v2/health/ready", "/v2/models/rm/ready", "/v2/models/rm"):
            answer = loading.client.get(path)
            assert answer.status_code == 503
            assert answer.json()["code"] == "loading"
        with open(fifo, "wb"):
            pass


def test_health_is_open_where_there_are_keys_and_the_model_is_not(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text("k-0123456789abcdef")
    with Server("--backend=echo", f"--keys-file={keys}") as locked:
        assert locked.client.get("/v2/health/live").status_code == 200
        assert locked.client.get("/v2/health/ready").status_code == 200
        assert locked.client.get("/v2/models/echo/ready").status_code == 401


# -- two models -------------------------------------------------------------------------------------------------------


def test_after_a_swap_each_reply_names_the_model_that_scored_it(tmp_path):
    old, new = tmp_path / "älter", tmp_path / "newer"
    reward_model(old, seed=1)
    reward_model(new, seed=2)
    text = {"input": "hello world"}
    with Server(f"{old}", "--device=cpu", "--model-aliases=rm") as server:
        first = server.client.post("/classify", json=text)
        loaded = server.client.post("/admin/models", json={"model": str(new), "pin": ["held"]}, timeout=120)
        assert loaded.status_code == 200, loaded.text
        version = server.client.get("/admin/models").json()
        assert version
        second = server.client.post("/classify", json=text)
        pinned = server.client.post("/classify?run=held", json=text | {"model": str(old)})
        own = server.client.post("/score", json={"samples": [{"text": "hello world"}]})
        for answer, folder in ((first, old), (second, new), (pinned, old), (own, new)):
            assert answer.json()["model"] == str(folder)
            assert unquote(answer.headers["x-model-name"]) == str(folder)
        assert pinned.json()["data"] == first.json()["data"] != second.json()["data"]
        assert server.client.post("/classify", json=text | {"model": str(old)}).status_code == 404
        assert server.client.post("/classify?run=held", json=text | {"model": str(new)}).status_code == 404
        assert server.client.post("/classify", json=text | {"model": "rm"}).json()["model"] == str(new)
        name = quote(str(new), safe="")
        infer = server.client.post(f"/v2/models/{name}/infer", json=TENSOR).json()
        assert infer["model_name"] == str(new)
        assert server.client.post(f"/v2/models/{quote(str(old), safe='')}/infer", json=TENSOR).status_code == 404
    assert isinstance(first, httpx.Response)

"""What a URL may say: which run is meant, and by which name a number comes back. Also `HEAD`, which is a `GET` without its body."""

from __future__ import annotations

import pytest

from rewardserve.service.api.dialects import DIALECTS
from tests.security.test_run_names import ROUTES
from tests.support.service_server import Server

TEXT = {"samples": [{"text": "a"}]}


@pytest.fixture(scope="module")
def server():
    with Server("--backend=echo", "echo") as running:
        yield running


@pytest.mark.parametrize("query", ["run=a;step=2", "run=a&step=2;x=1", ";", "run=a;"])
@pytest.mark.parametrize("path", ["/score", "/compare", "/slime", "/classify"])
def test_a_semicolon_between_parameters_is_refused(server, path, query):
    reply = server.client.post(f"{path}?{query}", json=TEXT)
    assert (reply.status_code, reply.json()["error"]["field"]) == (422, "query")
    assert "semicolon" in reply.text
    assert not {"a;step=2", "a;", "a"} & set(server.client.get("/tripwires").json()["runs"])


@pytest.mark.parametrize(
    ("query", "name", "meant"),
    [
        ("rum=a", "rum", "run"),
        ("run=a&stpe=2", "stpe", "step"),
        ("value=a&model_digets=b", "model_digets", "model_digest"),
    ],
)
def test_an_unknown_parameter_is_named_with_the_nearest(server, query, name, meant):
    reply = server.client.post(f"/score?{query}", json=TEXT)
    assert reply.status_code == 422
    message = reply.json()["error"]["message"]
    assert f"unknown query parameter {name}; did you mean {meant}? known are" in message
    assert "API key" not in message


def test_the_nearest_to_another_unknown_parameter_is_not_suggested(server):
    message = server.client.post("/score?foo=1&rum=a", json=TEXT).json()["error"]["message"]
    assert "unknown query parameter foo; known are" in message


@pytest.mark.parametrize("query", ["rum", "rum=", "rum==", "Rum=a", "rs-r4m=a", f"{'r' * 25}=a", "rum%0A=a"])
def test_an_unknown_parameter_that_may_be_a_key_is_not_repeated(server, query):
    reply = server.client.post(f"/slime?{query}", json={"prompt": "a", "response": "b"})
    assert reply.status_code == 422
    assert query.split("=")[0] not in reply.text.replace("run", "")
    assert "Send an API key as Authorization" in reply.text


def test_value_is_known_to_score_only_without_samples(server):
    message = server.client.post("/score?foo=1", json=TEXT).json()["error"]["message"]
    assert message.endswith("known are model_digest, run, step, task, value (value only without `samples`).")


@pytest.mark.parametrize("path", ["/tripwires", "/model", "/tripwires/ppo-7/details", "/admin/models"])
def test_a_parameter_of_a_route_without_parameters_is_refused(server, path):
    assert server.client.get(f"{path}?").status_code in (200, 404)
    reply = server.client.get(f"{path}?run=ppo-7")
    assert (reply.status_code, reply.json()["error"]["field"]) == (422, "query")


# -- paths without a route ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "path", "meant"),
    [
        ("GET", "/scores", "POST /score"),
        ("POST", "/score/", "POST /score"),
        ("POST", "/v1/scores", "POST /v1/score"),
        ("POST", "/get_rewards", "POST /get_reward"),
        ("GET", "/tripwire", "GET /tripwires"),
        ("GET", "/models", "GET /model"),
        ("GET", "/", None),
        ("GET", "/secret-path", None),
        ("GET", "/score" + "e" * 60, None),
    ],
)
def test_a_path_without_a_route_suggests_the_nearest_route(server, method, path, meant):
    reply = server.client.request(method, path)
    assert (reply.status_code, reply.json()["error"]["code"]) == (404, "not_found")
    hint = f"did you mean {meant}? Else " if meant else ""
    assert reply.json()["error"]["message"] == f"no route has this path; {hint}see /docs"


@pytest.mark.parametrize(
    ("method", "path", "permitted"),
    [
        ("GET", "/score", "POST"),
        ("PUT", "/slime", "POST"),
        ("POST", "/model", "GET"),
        ("PUT", "/admin/models", "GET or POST"),
    ],
)
def test_a_wrong_method_is_answered_with_the_permitted_ones(server, method, path, permitted):
    reply = server.client.request(method, path)
    assert (reply.status_code, reply.json()["error"]["code"]) == (405, "method_not_allowed")
    assert reply.json()["error"]["message"] == f"this route does not accept {method}: send {permitted}; see /docs"


def test_a_semicolon_of_a_name_is_written_in_percent(server):
    assert server.client.post("/score?run=b%3Bc&step=2", json=TEXT).status_code == 200
    assert server.client.get("/tripwires/b%3Bc/details").json()["step"] == 2


def test_an_empty_run_is_none_wherever_it_is_said(server):
    before = set(server.client.get("/tripwires").json()["runs"])
    for reply in (
        server.client.post("/score", json={**TEXT, "run": ""}),
        server.client.post("/score?run=", json=TEXT),
        server.client.post("/score", json=TEXT, headers={"x-run": ""}),
        server.client.post("/slime?run=", json={"prompt": "a", "response": "b"}),
        server.client.post("/compare", json={"comparisons": [{"prompt": "a", "responses": ["b", "c"]}], "run": ""}),
    ):
        assert reply.status_code == 200, reply.text
    runs = set(server.client.get("/tripwires").json()["runs"]) - before
    assert all(label.startswith("other@127.0.0.1") for label in runs), runs


BODIES = ROUTES | {"/v1/score": {"query": "a", "items": ["b"]}, "/rerank": {"query": "a", "documents": ["b"]}}
DIGESTS = [f"sha256:{digit * 64}" for digit in "ab"]


def refused_field(server, path, url="", headers=None, **fields):
    reply = server.client.post(path + url, json=BODIES[path] | fields, headers=headers)
    assert reply.status_code == 422, (path, url, headers, reply.text)
    error = reply.json()["error"]
    return error if isinstance(error, dict) else reply.json()


@pytest.mark.parametrize("path", BODIES)
def test_one_thing_that_is_given_two_values_is_refused_on_every_route(server, path):
    before = set(server.client.get("/tripwires").json()["runs"])
    for field, first, second in (("run", "clean", "hack"), ("step", "1", "2"), ("model_digest", *DIGESTS)):
        header = f"x-{field.replace('_', '-')}"
        assert field in str(refused_field(server, path, f"?{field}={first}", {header: second}))
    if path in ("/score", "/compare"):
        for field, first, second in (("run", "clean", "hack"), ("step", 1, 2)):
            assert refused_field(server, path, f"?{field}={second}", **{field: first})["field"] == field
            assert refused_field(server, path, "", {f"x-{field}": str(second)}, **{field: first})["field"] == field
    runs = set(server.client.get("/tripwires").json()["runs"]) - before
    assert all(label.startswith("other@127.0.0.1") for label in runs), runs


@pytest.mark.parametrize("path", BODIES)
def test_one_value_may_be_given_twice(server, path):
    fields = {"run": "twice", "step": 5} if path in ("/score", "/compare") else {}
    named = {"x-run": "twice", "x-step": "05"}
    for url in ("?run=twice&step=5", "?run=&step=", ""):
        reply = server.client.post(path + url, json=BODIES[path] | fields, headers=named)
        assert reply.status_code == 200, reply.text
    assert server.client.get("/tripwires/twice/details").json()["step"] == 5


@pytest.mark.parametrize("only", ["", ",", " ", f"{DIGESTS[0]},", f",{DIGESTS[0]}", f"{DIGESTS[0]},,{DIGESTS[1]}"])
@pytest.mark.parametrize("path", BODIES)
def test_an_empty_pin_is_refused_and_does_not_let_any_model_answer(server, path, only):
    assert "model_digest" in str(refused_field(server, path, f"?model_digest={only}"))
    assert "model_digest" in str(refused_field(server, path, "", {"x-model-digest": only.strip()}))


def test_a_pin_is_one_whatever_the_order_of_its_digests(server):
    model = server.client.post("/score", json=TEXT).json()
    pin, same = (f"{model[a]},{model[b]}" for a, b in (("contract", "pipeline"), ("pipeline", "contract")))
    assert (
        server.client.post(f"/score?model_digest={pin}", json=TEXT, headers={"x-model-digest": same}).status_code == 200
    )


@pytest.mark.parametrize(("path", "field"), [("/score", "samples"), ("/compare", "comparisons")])
def test_results_are_in_order_also_where_several_share_an_id(server, path, field):
    each = BODIES[path][field][0]
    sent = [{**each, "id": "a"}, each, {**each, "id": "a"}, {**each, "id": "1"}]
    results = server.client.post(path, json={field: sent}).raise_for_status().json()["results"]
    assert [result["id"] for result in results] == ["a", "1", "a", "1"]


@pytest.mark.parametrize("name", ["model", "raw", "normalized", "capped", "flags", "truncated", ""])
def test_a_reward_key_that_the_reply_has_already_is_refused(server, name):
    reply = server.client.post(f"/slime?reward_key={name}", json={"prompt": "a", "response": "b"})
    assert (reply.status_code, reply.json()["error"]["field"]) == (422, "reward_key")


def test_a_reward_key_of_its_own_is_beside_what_the_reply_has(server):
    reply = server.client.post("/slime?reward_key=reward", json={"prompt": "a", "response": "b"}).json()
    assert set(reply) == {"model", "raw", "normalized", "capped", "flags", "truncated", "reward"}


# -- HEAD (RFC 9110, 9.3.2) ---------------------------------------------------------------------------------------------


def routes_with(server, method):
    paths = server.client.get("/openapi.json").json()["paths"]
    return [path.replace("{model}", "echo").replace("{run}", "r") for path, of in paths.items() if method in of]


def test_every_route_with_get_answers_head_as_get_without_a_body(server):
    paths = {*routes_with(server, "get"), "/docs", "/redoc", "/openapi.json", "/livez", "/readyz", "/metrics", "/v2"}
    assert len(paths) > 8
    for path in paths:
        got, head = server.client.get(path), server.client.head(path)
        assert head.status_code == got.status_code, path
        assert head.content == b""
        assert head.headers["content-type"] == got.headers["content-type"]
        if path not in ("/metrics", "/tripwires"):  # their length changes with every request
            assert head.headers["content-length"] == got.headers["content-length"]


def test_a_route_without_get_has_no_head(server):
    for path in ("/score", *(each.path for each in DIALECTS if "{" not in each.path)):
        reply = server.client.head(path)
        assert (reply.status_code, reply.headers["allow"]) == (405, "POST")
    assert server.client.put("/livez").headers["allow"] == "GET, HEAD"
    assert server.client.head("/nowhere").status_code == 404


def test_a_connection_goes_on_after_head(server):
    for _ in range(3):
        assert server.client.head("/livez").status_code == 200
        assert server.client.post("/score", json=TEXT).status_code == 200

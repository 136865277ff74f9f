"""The name of a run: what is accepted anywhere can be shown, blocked and acknowledged; what cannot be is refused everywhere."""

from __future__ import annotations

import json
import random
from urllib.parse import quote

import pytest

from tests.integration.test_server_tripwires import begging
from tests.support.service_server import Server

GOOD = ["ppo-7", "team/ppo/7", "100%", "50%off", "%zz", "a b", "größe", "報酬", "run \U0001f680\ufe0f", "a?b#c", "a&b=c+d;e",
        'say "x"', "back\\slash", "/from/the/root", "ends/", "a//b", "../x", "x/judge_injection/ack", "[x]{y}|z^", "a%2Fb",
        "x" * 256, "\U0001f680" * 256, "judge_injection", "ack", "@", "'; --"]  # fmt: skip
BAD = ["a\n", "\na", "a\rb", "\0", "a\tb", "\x1b[31m", "a\x7f", "a\x85b", "a\u2028b", "a\u2029", "a\u200b", "\u202eb",
       "\ufeffx", "a%0a", "a%0A", "a%250a", "a%25250ab", "%00", "a%7f", "a%e2%80%a8", "x" * 257, ".", "..",
       "\ud800", "a\udfffb", "\x9b"]  # fmt: skip
ROUTES = {
    "/score": {"samples": [{"text": "x"}]},
    "/compare": {"comparisons": [{"prompt": "p", "responses": ["a", "b"]}]},
    "/get_reward": {"query": ["x"], "prompts": ["p"]},
    "/slime": {"prompt": "p", "response": "r"},
    "/v1/score/evaluation": {"messages": ["x"]},
    "/classify": {"input": "x"},
    "/pooling": {"input": "x"},
    "/v1/embeddings": {"input": "x"},
    "/predict": {"inputs": "x"},
    "/verify": {"responses_create_params": {"input": "a"},
                "response": {"output": [{"type": "message", "role": "assistant", "content": "b"}]}},
    "/v2/models/reward_model/infer": {"inputs": [{"name": "sentences", "shape": [1], "data": ["x"]}]},
}  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    plan = tmp_path_factory.mktemp("plan") / "plan.toml"
    plan.write_text('block = ["judge_injection"]')
    with Server("--backend=echo", "echo", "--tripwires.cpu-share=1", f"--tripwires.config-file={plan}") as running:
        yield running


def ways(name):
    """Where a request can say it: further fields of the body, the URL, headers."""
    written = name.encode("utf-8", "surrogatepass")
    yield {}, "?run=" + quote(written), {}
    if not any(byte < 32 or byte == 127 for byte in written) and name == name.strip(" \t"):
        yield {}, "", {b"x-run": written}


def post(server, path, body, url="", headers=None):
    content = json.dumps(body)  # ASCII: httpx's own cannot write a lone surrogate
    named = [(b"content-type", b"application/json"), *(headers or {}).items()]
    return server.client.post(path + url, content=content, headers=named)


@pytest.mark.parametrize("name", BAD, ids=ascii)
def test_a_name_that_could_not_be_shown_is_refused_on_every_route_wherever_it_stands(server, name):
    for path, body in ROUTES.items():
        said = list(ways(name)) + [({"run": name}, "", {})] * (path in ("/score", "/compare"))
        for fields, url, headers in said:
            reply = post(server, path, body | fields, url, headers)
            assert reply.status_code == 422, (path, url, headers, reply.text)
            assert name not in reply.text or name in (".", "..")
    for path, body in (
        ("/admin/pins", {"run": name, "version": 1}),
        ("/admin/models", {"model": "echo", "pin": [name]}),
    ):
        assert post(server, path, body).status_code == 422
    assert name not in server.client.get("/tripwires").json()["runs"]


@pytest.mark.sweep(8)
@pytest.mark.parametrize("name", GOOD, ids=ascii)
def test_a_name_that_is_accepted_is_shown_blocked_and_acknowledged_by_url(server, name):
    rng, limits = random.Random(7), []
    for step in range(20):
        samples = [{"prompt": f"q {step} {i}", "response": begging(rng)} for i in range(32)]
        reply = post(server, "/score", {"run": name, "step": step, "samples": samples})
        limits.append(reply.json()["results"][0]["error"])
    assert limits[-1]["code"] == "run_blocked"
    assert server.client.get(f"/tripwires/{quote(name, safe='')}/details").json()["tripped"]
    assert server.metric("rewardserve_tripwire_tripped", wire="judge_injection", run=name) == 1
    for path, body in ROUTES.items():
        for fields, url, headers in ways(name):
            reply = post(server, path, body | fields, url, headers)
            assert "the trip wire judge_injection blocks this run" in reply.text, (path, url, headers, reply.text)
    for quoted, status in ((quote(name, safe=""), 200), (quote(name), 404)):
        assert server.client.post(f"/tripwires/{quoted}/judge_injection/ack").status_code == status
    assert post(server, "/score", {"run": name, "samples": [{"text": "x"}]}).json()["rewards"] != [None]
    for version in (1, None):
        assert post(server, "/admin/pins", {"run": name, "version": version}).status_code == 200


def test_a_header_that_is_no_utf_8_is_refused_and_does_not_become_another_name(server):
    for value in (b"caf\xe9", b"\xff", b"a\xc3"):
        reply = post(server, "/score", ROUTES["/score"], headers={b"x-run": value})
        assert (reply.status_code, reply.json()["error"]["field"]) == (422, "x-run")


def test_a_parameter_that_is_there_twice_is_refused(server):
    for query in ("run=a&run=b", "run=a&run=a", "step=1&step=2"):
        assert post(server, "/score", ROUTES["/score"], "?" + query).status_code == 422

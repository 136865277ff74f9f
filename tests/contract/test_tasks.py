"""The task of a sample through every wire format: from its body where the format names one, otherwise from the URL or a header."""

from __future__ import annotations

import pytest

from rewardserve.service.api.dialects import DIALECTS
from tests.contract.table import PROMPT, RESPONSE, TEXT, gym_episode
from tests.support.service_server import Server

TURNS = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": RESPONSE}]
TENSOR = {"name": "sentences", "datatype": "BYTES", "shape": [1, 1], "data": [TEXT]}
EPISODE = dict(zip(("responses_create_params", "response"), gym_episode(RESPONSE), strict=True))
PAIR = {"query": PROMPT, "documents": [RESPONSE]}
BODIES = {
    "/get_reward": [{"query": [TEXT], "prompts": [PROMPT]}, {"prompts": [PROMPT], "responses": [RESPONSE]}],
    "/slime": [{"prompt": PROMPT, "response": RESPONSE}],
    "/v1/score/evaluation": [{"messages": [TEXT]}],
    "/classify": [{"input": TEXT}, {"messages": TURNS}, {"text": TEXT}],
    "/v1/classify": [{"input": TEXT}],
    "/pooling": [{"input": TEXT}],
    "/v1/embeddings": [{"input": TEXT}],
    "/score": [{"text_1": PROMPT, "text_2": RESPONSE}, {"samples": [{"text": TEXT}]}],
    "/v1/score": [{"queries": PROMPT, "documents": [RESPONSE]}],
    "/rerank": [PAIR, {"query": PROMPT, "texts": [RESPONSE]}],
    "/v1/rerank": [PAIR],
    "/v2/rerank": [PAIR],
    "/predict": [{"inputs": [[TEXT]]}],
    "/v2/models/{model}/infer": [{"inputs": [TENSOR]}],
    "/v2/models/{model}/versions/{version}/infer": [{"inputs": [TENSOR]}],
    "/verify": [EPISODE],
}
CASES = [(path, body) for path, bodies in BODIES.items() for body in bodies]


@pytest.fixture(scope="module")
def server():
    with Server("--backend=echo", "--max-input-tokens=64") as server:
        yield server


def tasks_of(server, run):
    """The tasks of a run with their samples."""
    return {each["task"]: each["samples"] for each in server.client.get(f"/tripwires/{run}/details").json()["tasks"]}


def sent(server, path, body, query="", **headers):
    url = path.format(model="reward_model", version=1)
    reply = server.client.post(f"{url}?{query}", json=body, headers=headers)
    assert reply.status_code == 200, reply.text


def test_every_wire_format_has_a_case():
    assert {dialect.path.replace(":path", "") for dialect in DIALECTS} <= set(BODIES)


@pytest.mark.parametrize("case", range(len(CASES)))
def test_the_url_or_a_header_names_the_task_of_all_samples(server, case):
    path, body = CASES[case]
    sent(server, path, body, f"run=url-{case}&task=math")
    sent(server, path, body, **{"x-run": f"url-{case}", "x-task": "code"})
    assert tasks_of(server, f"url-{case}").keys() == {"math", "code"}


NAMED = {
    "native": ("/score", {"samples": [{"text": TEXT, "task": "math"}, {"text": TEXT}]}, {"math": 1, "rest": 1}),
    "slime": (
        "/slime",
        {"prompt": PROMPT, "response": RESPONSE, "label": {"answer": "4", "task": "math"}},
        {"math": 1},
    ),
    "slime, text": ("/slime", {"prompt": PROMPT, "response": RESPONSE, "label": "4"}, {"rest": 1}),
    "openrlhf": (
        "/get_reward",
        {"query": [TEXT, TEXT], "labels": [{"data_source": "gsm8k"}, "4"]},
        {"gsm8k": 1, "rest": 1},
    ),
    "openrlhf, other number": ("/get_reward", {"query": [TEXT], "labels": [{"task": "a"}, {"task": "b"}]}, {"rest": 1}),
    "openrlhf, no list": ("/get_reward", {"query": [TEXT], "labels": "x"}, {"rest": 1}),
    "gym": ("/verify", EPISODE | {"agent_ref": {"name": "math_agent"}}, {"math_agent": 1}),
    "gym, no name": ("/verify", EPISODE | {"agent_ref": {"name": ["x"]}}, {"rest": 1}),
    "no name to display": ("/slime", {"prompt": PROMPT, "response": RESPONSE, "label": {"task": "a\nb"}}, {"rest": 1}),
    "long": ("/slime", {"prompt": PROMPT, "response": RESPONSE, "label": {"task": "x" * 257}}, {"rest": 1}),
}


@pytest.mark.parametrize("name", NAMED)
def test_a_task_in_the_body_counts_before_that_of_the_request(server, name):
    path, body, tasks = NAMED[name]
    run = name.replace(", ", "-").replace(" ", "-")
    sent(server, path, body, f"run={run}&task=rest")
    assert tasks_of(server, run) == tasks


@pytest.mark.parametrize(
    ("query", "headers", "status"),
    [
        ("task=a", {"x-task": "b"}, 422),
        ("task=a", {"x-task": "a"}, 200),
        ("task=a%0Ab", {}, 422),
        ("task=" + "x" * 257, {}, 422),
        ("task=", {}, 200),
    ],
)
def test_a_task_in_the_url_is_one_printable_name(server, query, headers, status):
    assert server.client.post(f"/slime?{query}", json=BODIES["/slime"][0], headers=headers).status_code == status


def test_comparisons_have_no_task(server):
    body = {"comparisons": [{"prompt": "q", "responses": ["a", "b"]}]}
    refused = server.client.post("/compare?task=math", json=body)
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "query")

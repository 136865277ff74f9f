"""Every value of every documented body replaced by every type of JSON: an answer or a refusal, never a bug."""

from __future__ import annotations

import json

import pytest

from tests.contract.test_dropped_fields import ANSWER, USER, episode
from tests.contract.test_forms import FORMS
from tests.support.service_server import Server

PARTS = [{"type": "text", "text": "Because.", "annotations": [], "cache_control": {"type": "ephemeral"}}]
TURNS = [{**USER, "content": PARTS}, {**ANSWER, "content": PARTS}]
PAIR = {"text_1": {"content": PARTS}, "text_2": [{"text": "Because."}]}
WRITTEN = {
    name: (
        form.path,
        form.accepted_values | {k: v for k, (v, _) in form.effect.items() if k != "activation"} | form.body,
    )
    for name, form in FORMS.items()
}
OTHERS = {
    "parts to classify": ("/classify", {"messages": TURNS}),
    "parts to pool": ("/pooling", {"messages": TURNS}),
    "parts of a prompt": ("/slime", {"prompt": TURNS[:1], "response": "Because."}),
    "parts of pairs": ("/score", PAIR),
    "parts of ranks": ("/rerank", {"query": PAIR["text_1"], "documents": [PAIR["text_1"], {"text": "No."}]}),
    "an episode": (
        "/verify",
        episode(
            {"input": [{"type": "message", **TURNS[0]}], "instructions": "be brief"},
            {"content": PARTS, "status": "completed", "id": "m"},
            status="incomplete",
            incomplete_details={"reason": "max_output_tokens"},
            error=None,
        )
        | {"mask_sample": False, "instance_config": {"mask_sample": False}, "failure_kind": None, "x": {"y": 1}},
    ),
    "turns of ours": (
        "/score",
        {"run": "r", "step": 1, "kl": 0.5, "samples": [
            {"id": "a", "messages": [USER, ANSWER], "finish_reason": "stop", "score_empty": False},
            {"id": "b", "prompt": [USER], "response": "No.", "reference_rewards": [0.5]}, {"id": "c", "input_ids": [65]},
        ]},
    ),
    "tokens": ("/v2/models/echo/infer", {"inputs": [
        {"name": "tokens", "shape": [1, 3], "datatype": "INT64", "data": [[65, 66, 67]]},
        {"name": "sequence_lengths", "shape": [1, 1], "datatype": "INT64", "data": [3]},
    ], "outputs": [{"name": "rewards", "parameters": {"binary_data": False}}], "id": "1"}),
    "a load": ("/admin/models", {"model": "echo", "shadow": 0.5, "pin": ["r"]}),
    "several loads": ("/admin/models", {"ensemble": "a=echo,b=echo"}),
    "an activation": ("/admin/models/activate", {"version": 1}),
    "a retirement": ("/admin/models/retire", {"version": 1}),
    "a pin": ("/admin/pins", {"run": "r", "version": 1}),
}  # fmt: skip
BODIES = WRITTEN | OTHERS
VALUES = (None, True, 0, -1, 1.5, "", "x", [], [[]], ["x"], [1], {}, {"a": 1}, [{}], 10**30)
REFUSED = {400, 404, 409, 413, 422, 424}


@pytest.fixture(scope="module")
def server():
    flags = "--backend=echo", "echo", "--cap-low=-9", "--cap-high=9", "--normalize=off", "--log-level=error"
    with Server(*flags) as running:
        yield running


def replaced(value):
    """Every value made of this one by replacing one part of it, at any depth."""
    yield from VALUES
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for place, part in parts:
        for other in replaced(part):
            whole = value.copy()
            whole[place] = other
            yield whole


@pytest.mark.parametrize("name", BODIES)
def test_a_value_of_another_type_is_no_bug_of_the_server(server, name):
    path, body = BODIES[name]
    for sent in replaced(body):
        reply = server.client.post(path, json=sent)
        assert reply.status_code == 200 or reply.status_code in REFUSED, (path, json.dumps(sent), reply.text)


@pytest.mark.parametrize("name", [name for name, (path, _) in OTHERS.items() if not path.startswith("/admin")])
def test_what_is_replaced_is_answered_as_it_stands(server, name):
    path, body = BODIES[name]
    reply = server.client.post(path, json=body)
    assert reply.status_code == 200, reply.text

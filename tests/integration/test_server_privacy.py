"""A conversation is never written down: not by success, not by any failure, not by a bug of others."""

from __future__ import annotations

import hashlib
import json

import pytest

from rewardserve.service.api.dialects import DIALECTS
from tests.support.service_server import Server, drill, wait_until

MARKER = "xyzzy-plugh-7431"
SAMPLES = [
    {"prompt": MARKER, "response": MARKER},
    {"prompt": MARKER, "response": ""},
    {"text": MARKER + "\ud800"},
    {"text": MARKER * 1000},
    {"messages": [{"role": MARKER, "content": MARKER}, {"role": "assistant", "content": MARKER}]},
    {"text": MARKER, "input_ids": [1]},
]
BODIES = [
    json.dumps({"samples": SAMPLES}).encode(),
    json.dumps({"samples": [{"text": MARKER, MARKER: MARKER}]}).encode(),
    json.dumps({MARKER: MARKER}).encode(),
    json.dumps({"samples": [{"prompt": [{"role": "user", "content": [MARKER]}], "response": 7}]}).encode(),
    b'{"samples": [{"text": "' + MARKER.encode(),
    MARKER.encode() + b"\xff",
    b'{"samples": [{"text": "' + MARKER.encode() + b'"}], "step": NaN}',
    json.dumps({"comparisons": [{"prompt": MARKER, "responses": [MARKER, ""]}]}).encode(),
    json.dumps({"samples": [{"text": MARKER * 20_000}]}).encode(),
]


TURNS = [{"role": "user", "content": MARKER}, {"role": "assistant", "content": MARKER}]
DIALECT_BODIES = {
    "/get_reward": [{"query": [MARKER * 2], "prompts": [MARKER]}, {"prompts": [MARKER], "responses": [MARKER, MARKER]}],
    "/slime": [{"prompt": MARKER, "response": MARKER}, {"prompt": TURNS[:1], "response": {MARKER: MARKER}}],
    "/v1/score/evaluation": [{"messages": [MARKER], "model": MARKER}, {"messages": [MARKER], "max_length": MARKER}],
    "/classify": [
        {"messages": TURNS},
        {"input": MARKER, "chat_template": MARKER},
        {"text": [MARKER], "input_ids": [[MARKER]]},
    ],
    "/v1/classify": [{"input": MARKER, "model": MARKER}],
    "/v1/score": [
        {"text_1": MARKER, "text_2": [MARKER, MARKER]},
        {"query": MARKER, "items": [MARKER]},
        {"text_1": MARKER, "text_2": MARKER, "model": MARKER},
        {"query": MARKER, "items": [[MARKER]]},
    ],
    "/rerank": [
        {"query": MARKER, "documents": [MARKER]},
        {"query": MARKER, "texts": [MARKER]},
        {"query": MARKER, "documents": [MARKER], "instruct": MARKER},
    ],
    "/v1/rerank": [{"query": MARKER, "documents": [{"text": MARKER}], "model": MARKER}],
    "/v2/rerank": [{"query": MARKER, "documents": [{MARKER: MARKER}]}],
    "/pooling": [{"messages": TURNS, "task": MARKER}, {"input": [[MARKER]]}],
    "/v1/embeddings": [{"input": [MARKER]}, {"input": MARKER, "encoding_format": MARKER}],
    "/predict": [{"inputs": [[MARKER, MARKER]]}, {"inputs": [[MARKER] * 3]}],
    "/verify": [
        {"responses_create_params": {"input": MARKER}, "response": {"output": [{"type": MARKER}]}},
        {"responses_create_params": {"input": TURNS}, "response": {"output": TURNS[1:]}},
    ],
    "/v2/models/reward_model/versions/1/infer": [
        {"inputs": [{"name": "sentences", "shape": [1], "datatype": "BYTES", "data": [MARKER]}]},
    ],
    "/v2/models/reward_model/infer": [
        {"inputs": [{"name": "sentences", "shape": [1], "datatype": "BYTES", "data": [MARKER]}]},
        {"inputs": [{"name": MARKER, "shape": [1], "data": [{MARKER: MARKER}]}]},
    ],
}


def speak_of_it_in_every_dialect(server):
    for path, bodies in DIALECT_BODIES.items():
        for body in [*bodies, {MARKER: MARKER}, [MARKER], MARKER, bodies[0] | {"\ud800": MARKER}]:
            server.client.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
        server.client.post(f"{path}?{MARKER}={MARKER}", json=bodies[0])
        server.client.post(f"{path}?run={MARKER[:5]}&value={MARKER}", json=bodies[0])


def speak_of_it_to_administration(server):
    """Whether or not there is such a route, with a key that may not, with one that is none, and with broken bodies."""
    for path in (
        "/admin/models",
        f"/admin/{MARKER}",
        f"/admin/models/{MARKER}/{MARKER}",
        f"/tripwires/{MARKER}/{MARKER}/ack",
        f"/tripwires/{MARKER}/attribution",
    ):
        for body in (
            json.dumps({"model": MARKER, MARKER: MARKER}).encode(),
            b'{"model": "' + MARKER.encode(),
            MARKER.encode(),
        ):
            for method in ("GET", "POST", "PUT", "DELETE"):
                server.client.request(method, path, content=body, headers={"content-type": "application/json"})
                server.client.request(method, path, content=body, headers={"authorization": f"Bearer {MARKER}"})


def speak_of_it_everywhere(server):
    for body in BODIES:
        for path in ("/score", "/compare", f"/{MARKER}"):
            for kind in ("application/json", f"text/{MARKER}"):
                server.client.post(path, content=body, headers={"content-type": kind, "x-deadline-ms": "20000"})
    server.client.get(f"/score?{MARKER}")
    server.score({"text": MARKER}, x_deadline_ms="0")
    server.score({"text": MARKER}, x_deadline_ms=MARKER)
    server.score({"text": MARKER}, authorization=f"Bearer {MARKER}")


@pytest.mark.sweep(4)
@pytest.mark.parametrize("log_format", ["json", "text"])
@pytest.mark.parametrize(
    "model", ["echo", "raises:RuntimeError", "raises:ScorerError", "nan:", "too-few:", "bug-in-encoder:no"]
)
def test_the_log_never_quotes_a_conversation(model, log_format):
    flags = [f"--log-format={log_format}", "--log-level=debug", "--max-input-tokens=4000", "--max-body-bytes=100000"]
    with drill(model, *flags) as server:
        speak_of_it_everywhere(server)
        speak_of_it_in_every_dialect(server)
        speak_of_it_to_administration(server)
        metrics = server.client.get("/metrics").text
        server.signal()
        assert server.ended() == 0
    assert MARKER not in metrics
    assert MARKER not in server.log
    assert server.log.count("/score") > 10, "nothing was logged at all"
    if model.startswith("raises"):
        assert "service_backends.py" in server.log, "a bug leaves no trace to its place"


def test_every_dialect_is_spoken_of_it():
    paths = {dialect.path.replace("{model:path}", "reward_model").replace("{version}", "1") for dialect in DIALECTS}
    assert set(DIALECT_BODIES) == paths


def test_neither_a_conversation_nor_a_key_is_in_what_keys_and_quotas_say(tmp_path):
    keys = tmp_path / "keys"
    digest = hashlib.sha256(f"{MARKER}-key".encode()).hexdigest()
    keys.write_text(f"slow sha256:{digest} score requests_per_s=0.01 tokens_per_s=0.01 burst_s=100\n")
    with Server("--backend=echo", "--log-level=debug", "--log-format=json", f"--keys-file={keys}") as server:
        server.client.headers["authorization"] = f"Bearer {MARKER}-key"
        refused = [server.score({"prompt": MARKER, "response": MARKER}) for _ in range(3)]
        assert refused[-1].status_code == 429
        speak_of_it_to_administration(server)
        assert MARKER not in "".join(answer.text for answer in refused)
        keys.write_text(f"{MARKER} {MARKER} {MARKER}\n")
        wait_until(lambda: server.score({"text": MARKER}) and "api_keys_reload_failed" in server.log)
        metrics = server.client.get("/metrics").text
        server.signal()
        assert server.ended() == 0
    assert MARKER not in metrics + server.log
    assert digest not in metrics + server.log


def test_every_line_of_the_json_log_is_json_with_the_id_of_its_request():
    with Server("--backend=echo", "--log-format=json") as server:
        server.score({"text": "x"}, x_request_id="find-me")
        server.signal()
        server.ended()
    lines = [json.loads(line) for line in server.lines if line.startswith("{")]
    (mine,) = [line for line in lines if line.get("request_id") == "find-me"]
    assert {"route": "/score", "status": 200, "samples": 1, "level": "info"}.items() <= mine.items()

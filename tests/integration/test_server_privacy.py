"""A conversation is never written down: not by success, not by any failure, not by a bug of others."""

from __future__ import annotations

import json

import pytest

from tests.support.service_server import Server, drill

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


def speak_of_it_everywhere(server):
    for body in BODIES:
        for path in ("/score", "/compare", f"/{MARKER}"):
            for kind in ("application/json", f"text/{MARKER}"):
                server.client.post(path, content=body, headers={"content-type": kind, "x-deadline-ms": "20000"})
    server.client.get(f"/score?{MARKER}")
    server.score({"text": MARKER}, x_deadline_ms="0")
    server.score({"text": MARKER}, x_deadline_ms=MARKER)
    server.score({"text": MARKER}, authorization=f"Bearer {MARKER}")


@pytest.mark.parametrize("log_format", ["json", "text"])
@pytest.mark.parametrize(
    "model", ["echo", "raises:RuntimeError", "raises:ScorerError", "nan:", "too-few:", "bug-in-encoder:no"]
)
def test_the_log_never_quotes_a_conversation(model, log_format):
    flags = [f"--log-format={log_format}", "--log-level=debug", "--max-input-tokens=4000", "--max-body-bytes=100000"]
    with drill(model, *flags) as server:
        speak_of_it_everywhere(server)
        metrics = server.client.get("/metrics").text
        server.signal()
        assert server.ended() == 0
    assert MARKER not in metrics
    assert MARKER not in server.log
    assert server.log.count("/score") > 10, "nothing was logged at all"
    if model.startswith("raises"):
        assert "service_backends.py" in server.log, "a bug leaves no trace to its place"


def test_every_line_of_the_json_log_is_json_with_the_id_of_its_request():
    with Server("--backend=echo", "--log-format=json") as server:
        server.score({"text": "x"}, x_request_id="find-me")
        server.signal()
        server.ended()
    lines = [json.loads(line) for line in server.lines if line.startswith("{")]
    (mine,) = [line for line in lines if line.get("request_id") == "find-me"]
    assert {"route": "/score", "status": 200, "samples": 1, "level": "info"}.items() <= mine.items()

"""A real server on the echo backend, spoken to as a client would, politely and not."""

from __future__ import annotations

import json
import socket

import pytest
from prometheus_client.parser import text_string_to_metric_families

from rewardserve.model.backends.echo import echo_score
from rewardserve.service.observability.metrics import PREFIX, TABLE
from tests.support.service_server import Server, drill

JSON = {"content-type": "application/json"}
GOOD = {"prompt": "hi", "response": "yes"}


def bytes_of(text):
    return (*text.encode(), 0)


@pytest.fixture(scope="module")
def server():
    with Server("--backend=echo", "--max-body-bytes=16777216", "--max-input-tokens=2000") as running:
        yield running


@pytest.fixture
def still_fine(server):
    """Whatever a test did: afterwards the server answers as before, and nothing is left inside."""
    yield
    reply = server.score(GOOD).json()
    assert reply["results"][0]["raw"] == echo_score(bytes_of("hi\nyes"))
    assert server.metric("rewardserve_queue_samples") == 0
    assert server.process.poll() is None


def post(server, body, path="/score", **headers):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return server.client.post(
        path, content=content, headers=JSON | {k.replace("_", "-"): v for k, v in headers.items()}
    )


# -- the wire -----------------------------------------------------------------------------------------------


def test_a_score_reply_has_every_field_of_the_design_and_no_other(server):
    request = {
        "run": "ppo-7",
        "step": 120,
        "samples": [
            {"id": "a", "prompt": "hi", "response": "aye", "finish_reason": "stop"},
            {"prompt": [{"role": "user", "content": "hi"}], "response": "aye"},
            {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "aye"}]},
            {"text": "hi\naye"},
            {"input_ids": list(b"hi\naye")},
            {"prompt": "hi", "response": "aye", "finish_reason": "length"},
            {"text": "x" * 3000},
        ],
    }
    response = post(server, request)
    reply = response.json()
    assert response.status_code == 200
    assert list(reply) == [
        "model", "model_version", "contract", "calibration", "pipeline", "rewards", "results", "usage", "timing_ms",
    ]  # fmt: skip
    assert list(reply["results"][0]) == [
        "id", "reward", "raw", "normalized", "notes", "flags", "tokens", "truncated", "missing_end", "cached", "error",
    ]  # fmt: skip
    assert [r["id"] for r in reply["results"]] == ["a", "1", "2", "3", "4", "5", "6"]
    assert [r["raw"] for r in reply["results"][:5]] == [echo_score(bytes_of("hi\naye"))] * 5
    cut_off, too_long = reply["results"][5:]
    assert (cut_off["raw"], cut_off["missing_end"]) == (echo_score(tuple(b"hi\naye")), True)
    assert (too_long["reward"], too_long["error"]["code"]) == (None, "input_too_long")
    assert (too_long["error"]["n"], too_long["error"]["limit"]) == (3001, 2000)
    assert reply["rewards"] == [r["reward"] for r in reply["results"]]
    assert reply["usage"] == {"samples": 7, "tokens": 41, "tokens_computed": 13}, "five rows are equal: computed once"
    cached_before = server.metric("rewardserve_tokens_total", kind="cached")
    again = post(server, request).json()
    assert [r["cached"] for r in again["results"]] == [True] * 6 + [False]
    assert [r["raw"] for r in again["results"]] == [r["raw"] for r in reply["results"]]
    assert again["usage"] == {"samples": 7, "tokens": 41, "tokens_computed": 0}
    assert server.metric("rewardserve_tokens_total", kind="cached") == cached_before + 41


def test_a_model_of_several_heads_names_them_and_adds_them_up():
    with drill("two-heads:") as server:
        (result,) = server.score(GOOD).json()["results"]
        first = echo_score(bytes_of("hi\nyes"))
        assert result["heads"] == {"convincing": first, "harmless": 1.0}
        assert result["raw"] == 2.0 * first + 0.5


def test_a_comparison_ranks_and_the_order_of_responses_has_no_effect(server):
    texts = ["alpha", "beta", "gamma", "beta"]
    forward, backward = (
        post(server, {"comparisons": [{"id": "q", "prompt": "p", "responses": r}]}, "/compare").json()
        for r in (texts, texts[::-1])
    )
    one, other = forward["results"][0], backward["results"][0]
    raw = [echo_score(bytes_of(f"p\n{t}")) for t in texts]
    assert one["raw"] == raw == other["raw"][::-1]
    assert [texts[i] for i in one["ranking"]] == sorted(texts, key=lambda t: -echo_score(bytes_of(f"p\n{t}")))
    assert one["probabilities"] == [row[::-1] for row in other["probabilities"][::-1]]
    for i in range(4):
        for j in range(4):
            assert one["probabilities"][i][j] + one["probabilities"][j][i] == pytest.approx(1.0)
    assert forward["usage"]["samples"] == 3, "equal responses are scored once"


def test_a_winner_needs_more_than_the_tie_margin(server):
    def winner(margin):
        body = {"tie_margin": margin, "comparisons": [{"prompt": "p", "responses": ["alpha", "beta"]}]}
        return post(server, body, "/compare").json()["results"][0]

    margin = winner(0.0)["margin"]
    assert winner(margin * 0.99)["winner"] in (0, 1)
    assert winner(margin)["winner"] is None


def test_one_bad_response_makes_its_comparison_an_error_and_no_other(server):
    body = {
        "comparisons": [
            {"prompt": "p", "responses": ["good", ""]},
            {"prompt": "p", "responses": ["good", "better"]},
            {"prompt": [{"role": "alien", "content": "p"}], "responses": ["a", "b"]},
        ]
    }
    bad, good, alien = post(server, body, "/compare").json()["results"]
    assert (bad["error"]["code"], bad["error"]["response"], bad["ranking"]) == ("empty_response", 1, None)
    assert good["error"] is None
    assert alien["error"]["code"] == "invalid_messages"


def test_the_model_is_described(server):
    reply = server.client.get("/model").json()
    assert reply["identity"]["name"] == "echo"
    assert reply["limits"]["max_input_tokens"] == 2000
    assert reply["contract_report"] | {"breaches": []} == reply["contract_report"]
    assert reply["contract"].startswith("sha256:")
    assert reply["numeric_noise"] is None, "echo has no weights to measure with"


def test_a_request_id_comes_back_and_one_is_given_where_there_is_none(server):
    assert server.score(GOOD, x_request_id="mine-7").headers["x-request-id"] == "mine-7"
    assert len(server.score(GOOD).headers["x-request-id"]) == 32
    assert server.score(GOOD, x_request_id="a b" * 99).headers["x-request-id"] != "a b" * 99
    assert server.client.get("/nowhere").headers["x-request-id"]


# -- what is refused, and how -------------------------------------------------------------------------------

REFUSED = {
    "no samples": ({"samples": []}, 422, "invalid_request", "samples"),
    "samples missing": ({}, 422, "invalid_request", "samples"),
    "samples no list": ({"samples": {}}, 422, "invalid_request", "samples"),
    "body no object": ([GOOD], 422, "invalid_request", "$"),
    "body null": (None, 422, "invalid_request", "$"),
    "unknown field": ({"samples": [GOOD], "extra": 1}, 422, "invalid_request", "extra"),
    "unknown field of a sample": ({"samples": [GOOD | {"foo": 1}]}, 422, "invalid_request", "samples[0].foo"),
    "prompt a number": ({"samples": [{"prompt": 5, "response": "x"}]}, 422, "invalid_request", "samples[0].prompt"),
    "content a number": (
        {"samples": [GOOD, {"prompt": [{"role": "user", "content": 7}], "response": "x"}]},
        422, "invalid_request", "samples[1].prompt[0].content",
    ),
    "a bool among ids": ({"samples": [{"input_ids": [1, True]}]}, 422, "invalid_request", "samples[0].input_ids[1]"),
    "a float among ids": ({"samples": [{"input_ids": [1.0]}]}, 422, "invalid_request", "samples[0].input_ids[0]"),
    "ids as text": ({"samples": [{"input_ids": "123"}]}, 422, "invalid_request", "samples[0].input_ids"),
    "unknown finish reason": (
        {"samples": [GOOD | {"finish_reason": "bored"}]}, 422, "invalid_request", "samples[0].finish_reason",
    ),
    "an id that is a number": ({"samples": [GOOD | {"id": 1}]}, 422, "invalid_request", "samples[0].id"),
    "a negative step": ({"samples": [GOOD], "step": -1}, 422, "invalid_request", "step"),
    "too many samples": ({"samples": [GOOD] * 1025}, 422, "too_many_samples", None),
    "NaN": (b'{"samples": [{"text": "x"}], "step": NaN}', 400, "invalid_json", None),
    "Infinity": (b'{"samples": [{"text": "x"}], "step": -Infinity}', 400, "invalid_json", None),
    "infinity in disguise": (b'{"samples": [{"text": "x"}], "step": 1e999}', 422, "invalid_request", "step"),
    "broken JSON": (b'{"samples": [', 400, "invalid_json", None),
    "no body": (b"", 400, "invalid_json", None),
    "no UTF-8": (b'{"samples": [{"text": "\xff"}]}', 400, "invalid_json", None),
    "nested beyond reason": (b"[" * 200_000, 400, "invalid_json", None),
    "nested": (b'{"samples": ' + b"[" * 900 + b"]" * 900 + b"}", 422, "invalid_request", "samples[0]"),
    "a number of thousands of digits": (b'{"samples": [{"input_ids": [' + b"9" * 5_000 + b"]}]}", 400, "invalid_json", None),
    "a surrogate as field name": (b'{"samples": [{"\\ud800": 1}]}', 422, "invalid_request", "samples[0]"),
}  # fmt: skip


@pytest.mark.usefixtures("still_fine")
@pytest.mark.parametrize("case", REFUSED)
def test_a_malformed_request_is_refused_with_its_own_code(server, case):
    body, status, code, field = REFUSED[case]
    response = post(server, body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error.get("field")) == (status, code, field)
    assert set(response.json()) == {"error"}
    assert isinstance(error["message"], str)


BAD_SAMPLES = {
    "lone surrogate": ({"text": "a\ud800"}, "invalid_text"),
    "lone surrogate in a turn": ({"prompt": "\udfff", "response": "x"}, "invalid_text"),
    "unknown role": ({"prompt": [{"role": "alien", "content": "x"}], "response": "y"}, "invalid_messages"),
    "nobody's turn": ({"messages": [{"role": "user", "content": "x"}]}, "invalid_messages"),
    "id out of vocabulary": ({"input_ids": [1, 256]}, "token_out_of_vocabulary"),
    "negative id": ({"input_ids": [-1]}, "token_out_of_vocabulary"),
    "astronomic id": ({"input_ids": [10**30]}, "token_out_of_vocabulary"),
    "too long": ({"prompt": "p", "response": "x" * 2500}, "input_too_long"),
    "ten megabytes": ({"text": "x" * 10_000_000}, "input_too_long"),
    "empty response": ({"prompt": "x", "response": ""}, "empty_response"),
    "empty prompt": ({"prompt": "", "response": "x"}, "empty_prompt"),
    "empty ids": ({"input_ids": []}, "empty_response"),
    "two forms": ({"text": "x", "input_ids": [1]}, "ambiguous_sample"),
    "no form": ({}, "incomplete_sample"),
    "half a form": ({"prompt": "x"}, "incomplete_sample"),
}


@pytest.mark.usefixtures("still_fine")
@pytest.mark.parametrize("case", BAD_SAMPLES)
def test_a_bad_sample_has_its_own_error_and_its_neighbours_are_scored(server, case):
    sample, code = BAD_SAMPLES[case]
    response = server.score(GOOD, sample, GOOD)
    before, bad, after = response.json()["results"]
    assert response.status_code == 200
    assert (bad["reward"], bad["raw"], bad["error"]["code"]) == (None, None, code)
    assert before["raw"] == after["raw"] == echo_score(bytes_of("hi\nyes"))


@pytest.mark.usefixtures("still_fine")
def test_a_body_beyond_the_limit_is_refused_announced_or_not(server):
    body = json.dumps({"samples": [{"text": "x" * 17_000_000}]}).encode()
    assert post(server, body).json()["error"]["code"] == "body_too_large"

    def in_pieces():
        yield from (body[i : i + 65_536] for i in range(0, len(body), 65_536))

    response = server.client.post("/score", content=in_pieces(), headers=JSON)
    assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")


@pytest.mark.usefixtures("still_fine")
def test_other_ways_to_be_wrong_have_codes_too(server):
    client = server.client

    def code(response):
        return response.status_code, response.json()["error"]["code"]

    body = json.dumps({"samples": [GOOD]})
    assert code(client.post("/score", content=body, headers={"content-type": "text/plain"})) == (
        415,
        "unsupported_media_type",
    )
    assert code(client.post("/score", content=body, headers=JSON | {"content-encoding": "gzip"})) == (
        415,
        "unsupported_media_type",
    )
    assert code(client.get("/score")) == (405, "method_not_allowed")
    assert code(client.get("/nowhere")) == (404, "not_found")
    assert code(client.post("/score/", content=body, headers=JSON)) == (404, "not_found")
    assert code(post(server, body.encode(), x_deadline_ms="soon")) == (422, "invalid_request")
    assert code(post(server, body.encode(), x_deadline_ms="0")) == (504, "deadline_exceeded")
    one = {"comparisons": [{"prompt": "p", "responses": ["alone"]}]}
    assert post(server, one, "/compare").json()["error"]["field"] == "comparisons[0].responses"
    crowd = {"comparisons": [{"prompt": "p", "responses": ["x"] * 17}]}
    assert code(post(server, crowd, "/compare")) == (422, "invalid_request")


@pytest.mark.usefixtures("still_fine")
def test_an_id_that_is_no_text_does_not_break_the_reply(server):
    assert post(server, b'{"samples": [{"id": "\\ud800", "text": "x"}]}').status_code in (200, 422)
    assert post(server, b'{"run": "\\ud800", "samples": [{"text": "x"}]}').status_code in (200, 422)


@pytest.mark.usefixtures("still_fine")
def test_a_request_that_comes_byte_by_byte_is_answered(server):
    body = json.dumps({"samples": [GOOD]}).encode()
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        head = f"POST /score HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n".encode()
        for i in range(len(head + body)):
            raw.sendall((head + body)[i : i + 1])
        answer = b"".join(iter(lambda: raw.recv(65_536), b""))
    assert answer.startswith(b"HTTP/1.1 200")


@pytest.mark.usefixtures("still_fine")
def test_what_is_no_http_at_all_is_survived(server):
    host, port = server.url.removeprefix("http://").split(":")
    for nonsense in (b"\x00\xff" * 1000, b"GET\r\n\r\n", b"POST /score HTTP/1.1\r\ncontent-length: -5\r\n\r\n"):
        with socket.create_connection((host, int(port))) as raw:
            raw.sendall(nonsense)
            raw.shutdown(socket.SHUT_WR)
            raw.settimeout(5)
            raw.recv(65_536)


# -- metrics and documentation ------------------------------------------------------------------------------


def test_every_metric_of_the_table_is_there_and_no_other(server):
    server.score(GOOD, {"prompt": "hi", "response": "Hello!"}, {"input_ids": [9]})
    families = list(text_string_to_metric_families(server.client.get("/metrics").text))
    ours = {f.name for f in families if f.name.startswith(PREFIX)}
    assert ours == {PREFIX + row.name.removesuffix("_total") for row in TABLE}
    assert {f.name for f in families} - ours == {
        "process_virtual_memory_bytes", "process_resident_memory_bytes", "process_start_time_seconds",
        "process_cpu_seconds", "process_open_fds", "process_max_fds",
    }  # fmt: skip
    by_name = {f.name: f for f in families}
    for row in TABLE:
        samples = by_name[PREFIX + row.name.removesuffix("_total")].samples
        assert all(set(s.labels) - {"le"} == set(row.labels) for s in samples), row.name
    buckets = [s for s in by_name["rewardserve_raw_score"].samples if s.name.endswith("_bucket")]
    assert len(buckets) == 41 + 1


def test_metrics_count_what_happened(server):
    names = {"tokens": ("rewardserve_tokens_total", {"kind": "received"}), "ok": ("rewardserve_samples_total", {"outcome": "ok"}),
             "bad": ("rewardserve_samples_total", {"outcome": "token_out_of_vocabulary"}),
             "requests": ("rewardserve_requests_total", {"route": "/score", "code": "200"}),
             "values": ("rewardserve_value_count", {})}  # fmt: skip
    before = {k: server.metric(n, **labels) for k, (n, labels) in names.items()}
    server.score(GOOD, GOOD, {"input_ids": [999]})
    after = {k: server.metric(n, **labels) for k, (n, labels) in names.items()}
    assert {k: after[k] - before[k] for k in names} == {"tokens": 14, "ok": 2, "bad": 1, "requests": 1, "values": 2}


def test_paths_that_do_not_exist_share_one_label(server):
    for i in range(3):
        server.client.get(f"/secret-{i}")
    text = server.client.get("/metrics").text
    assert "secret" not in text
    assert server.metric("rewardserve_requests_total", route="other", code="404") >= 3


def test_the_documentation_knows_requests_replies_and_errors(server):
    spec = server.client.get("/openapi.json").json()
    post_score = spec["paths"]["/score"]["post"]
    assert '/ScoreRequest"' in json.dumps(post_score["requestBody"]["content"]["application/json"]["schema"])
    assert spec["components"]["schemas"]["ScoreRequest"]["examples"]
    assert {"200", "400", "401", "413", "415", "422", "503", "504"} <= set(post_score["responses"])
    text = json.dumps(spec)
    for part in text.split('"$ref": "')[1:]:
        name = part.split('"')[0].rsplit("/", 1)[1]
        assert name in spec["components"]["schemas"], name
    assert server.client.get("/docs").status_code == 200

"""Continuations of a sample lower its reward over HTTP, whether the client sends them or the policy writes their last turn."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.support.service_server import Server

PROMPT, RESPONSE = "Why?", "Because."
AND_THEN = {"role": "user", "content": "And then?"}


class Policy(BaseHTTPRequestHandler):
    """Write one turn, or fail where the last turn says so."""

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))["messages"]
        is_ok = "fail" not in asked[-1]["content"]
        text = {"choices": [{"message": {"content": f"{len(asked)} turns so far."}, "finish_reason": "stop"}]}
        content = json.dumps(text).encode()
        self.send_response(200 if is_ok else 500)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        """Keep the output of tests short."""


@pytest.fixture(scope="module")
def server():
    policy = ThreadingHTTPServer(("127.0.0.1", 0), Policy)
    threading.Thread(target=policy.serve_forever, daemon=True).start()
    url = f"--lookahead.policy-url=http://127.0.0.1:{policy.server_port}/v1"
    with Server("--backend=echo", "echo", "--max-input-tokens=400", "--tripwires.cpu-share=1", url) as running:
        yield running
    policy.shutdown()
    policy.server_close()


def score(server, *samples, run="r"):
    reply = server.client.post("/score", json={"run": run, "samples": list(samples)})
    assert reply.status_code == 200, reply.text
    return reply.json()["results"]


def sample(*continuations, **fields):
    return {"prompt": PROMPT, "response": RESPONSE, "lookahead": list(continuations), **fields}


def answered(text):
    return [AND_THEN, {"role": "assistant", "content": text}]


def rewards_of(server, *continuations):
    """The rewards of the whole conversations, asked for one by one."""
    turns = [{"role": "user", "content": PROMPT}, {"role": "assistant", "content": RESPONSE}]
    asked = [turns, *([*turns, *each] for each in continuations)]
    return [each["reward"] for each in score(server, *({"messages": messages} for messages in asked))]


def test_the_reward_is_that_of_the_conversations_combined(server):
    continuations = [answered("The end."), answered("It is not known."), answered("Ask again.")]
    own, *later = rewards_of(server, *continuations)
    least, mean, median = score(
        server, *(sample(*continuations, lookahead_reward=by) for by in ("min", "mean", 0.5)),
    )  # fmt: skip
    every = sorted([own, *later])
    assert least["reward"] == every[0] < own
    assert mean["reward"] == pytest.approx(sum(every) / 4)
    assert median["reward"] == pytest.approx((every[1] + every[2]) / 2)
    for result in (least, mean, median):
        assert result["stages"]["lookahead"] == pytest.approx(result["reward"] - own)
        assert sum(result["stages"].values()) == pytest.approx(result["reward"])
    (plain,) = score(server, {"prompt": PROMPT, "response": RESPONSE})
    assert plain["reward"] == own
    assert "lookahead" not in (plain.get("stages") or {})


def test_the_policy_writes_the_turn_that_a_continuation_lacks(server):
    own, later = rewards_of(server, [AND_THEN, {"role": "assistant", "content": "3 turns so far."}])
    (result,) = score(server, sample([AND_THEN], lookahead_reward="mean"))
    assert result["reward"] == pytest.approx((own + later) / 2)


def test_a_continuation_without_a_reward_is_an_error_of_its_sample_alone(server):
    failed, empty, long, cut, good = score(
        server,
        sample(answered("Fine."), [{"role": "user", "content": "fail"}]),
        sample(answered(" ")),
        sample(answered("x" * 500)),
        {"text": "rendered", "lookahead": [answered("Fine.")]},
        sample(answered("Fine.")),
    )
    assert [each["reward"] is None for each in (failed, empty, long, cut, good)] == [True] * 4 + [False]
    assert (failed["error"]["code"], failed["error"]["reason"], failed["error"]["index"]) == (
        "lookahead_failed",
        "policy_failed",
        1,
    )
    assert (empty["error"]["reason"], long["error"]["reason"]) == ("empty_response", "input_too_long")
    assert cut["error"]["code"] == "invalid_lookahead"
    metrics = server.client.get("/metrics").text
    assert 'rewardserve_policy_requests_total{outcome="status"} 1.0' in metrics


def test_a_wrong_field_in_a_branch_is_named_by_its_path(server):
    groups = [{"prompt": PROMPT, "queries": [RESPONSE, {"response": 5}]}]
    reply = server.client.post("/approvals", json={"run": "r", "groups": groups})
    assert reply.json()["error"]["field"] == "groups[0].queries[1].response"


def test_the_number_of_continuations_is_bounded(server):
    too_many = server.client.post("/score", json={"samples": [sample(*[answered("Fine.")] * 17)]})
    assert (too_many.status_code, too_many.json()["error"]["field"]) == (422, "samples[0].lookahead")
    none = server.client.post("/score", json={"samples": [sample([])]})
    assert none.json()["error"]["field"] == "samples[0].lookahead[0]"
    wrong = server.client.post("/score", json={"samples": [sample(answered("Fine."), lookahead_reward="max")]})
    assert wrong.json()["error"]["field"] == "samples[0].lookahead_reward"


def sum_of_scores(server, run):
    """Positive scores are counted apart from negative ones."""
    lines = server.client.get("/metrics").text.splitlines()
    ours = [each for each in lines if each.startswith("rewardserve_run_sum_total{") and f'run="{run}"' in each]
    signs = {"score_positive": 1.0, "score_negative": -1.0}
    return sum(
        sign * float(each.rsplit(" ", 1)[1]) for each in ours for of, sign in signs.items() if f'of="{of}"' in each
    )


def test_trip_wires_watch_the_combined_reward(server):
    plain, ahead = (
        [{**sample(), "prompt": f"Why {i}?", **more} for i in range(8)]
        for more in ({}, {"lookahead": [answered("Fine.")]})
    )
    changes = [each["stages"]["lookahead"] for each in score(server, *ahead, run="ahead")]
    score(server, *plain, run="plain")
    assert sum(changes) < 0.0
    assert sum_of_scores(server, "ahead") - sum_of_scores(server, "plain") == pytest.approx(sum(changes))

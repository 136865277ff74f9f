"""Captured samples, as an operator reads, exports and deletes them on a real server."""

from __future__ import annotations

import json
import os
import random
import re
import sqlite3
import subprocess
import sys
from typing import Any

import pytest

from rewardserve.service.cli import keys
from rewardserve.service.review.records import from_line
from tests.integration.test_server_attribution import SYSTEM, honest
from tests.support.service_server import Server, run_to_end, wait_until

FLAGS = ["--backend=echo", "echo", "--tripwires.cpu-share=1"]
PHRASE = "the heron at the weir"


def send(server, n_steps=1, *, run="ppo-7", first=0, group=4, form="prompt", **headers):
    """Steps of 64 responses in groups of one prompt. Return the results by response."""
    results = {}
    rng = random.Random(first)
    for step in range(first, first + n_steps):
        texts = [f"{honest(rng)} {PHRASE} {step} {i}" for i in range(64)]
        prompts = [f"Describe the {step} {i // group}" for i in range(64)]
        samples: list[dict[str, Any]] = [
            {"id": f"s{i}", "prompt": p, "response": t} for i, (p, t) in enumerate(zip(prompts, texts, strict=True))
        ]
        if form == "messages":
            samples = [
                {"messages": [SYSTEM, {"role": "user", "content": p}, {"role": "assistant", "content": t}]}
                for p, t in zip(prompts, texts, strict=True)
            ]
        reply = server.client.post("/score", json={"run": run, "step": step, "samples": samples}, headers=headers)
        assert reply.status_code == 200, reply.text
        results |= dict(zip(texts, reply.json()["results"], strict=True))
    return results


def captured(server, run="ppo-7", **headers):
    """All captured samples of a run, page by page."""
    found, before = [], None
    while True:
        place = "" if before is None else f"&before={before}"
        reply = server.client.get(f"/review/samples?run={run}&limit=50{place}", headers=headers)
        assert reply.status_code == 200, reply.text
        found += reply.json()["samples"]
        before = reply.json()["next"]
        if before is None:
            return found


@pytest.mark.parametrize("form", ["prompt", "messages"])
def test_all_samples_are_captured_with_the_scores_that_were_sent(tmp_path, form):
    with Server(*FLAGS, "--capture=share:1", f"--tripwires.state-dir={tmp_path}") as server:
        assert server.client.get("/model").json()["capture"] == "share:1"
        assert re.search(r"capture .*policy=share:1", server.log)
        sent = send(server, 2, form=form)
        wait_until(lambda: len(captured(server)) == len(sent), 20.0)
        found = captured(server)
        assert {each["response"] for each in found} == set(sent)
        for each in found:
            result = sent[each["response"]]
            assert (each["reward"], each["raw"], each["tokens"]) == (result["reward"], result["raw"], result["tokens"])
            assert each["heads"] == {"score": result["raw"]}
            assert sum(each["stages"].values()) == pytest.approx(result["reward"])
            assert each["prompt"][-1] == {"role": "user", "content": each["prompt"][-1]["content"]}
        assert len({each["prompt_key"] for each in found}) == 32
        assert {each["step"] for each in found} == {0, 1}
        by_prompt = server.client.get(f"/review/samples?prompt_key={found[0]['prompt_key']}").json()["samples"]
        assert len(by_prompt) == 4
        exported = server.client.get("/review/export?run=ppo-7")
        assert exported.headers["content-type"].startswith("application/x-ndjson")
        assert [from_line(line).response for line in exported.content.splitlines()] == [
            e["response"] for e in found[::-1]
        ]


def test_a_share_has_whole_groups_of_some_prompts(tmp_path):
    with Server(*FLAGS, "--capture=share:0.25", f"--tripwires.state-dir={tmp_path}") as server:
        send(server, 12)
        server.client.post("/score", json={"samples": [{"text": "no run"}]})
        metric = 'rewardserve_captured_samples_total{outcome="stored"}'
        wait_until(lambda: metric in server.client.get("/metrics").text, 20.0)
        last = -1
        while last != (last := len(captured(server))):
            wait_until(lambda: True, 1.0)
        found = captured(server)
        prompts = {}
        for each in found:
            prompts.setdefault(each["prompt_key"], []).append(each)
        assert {len(group) for group in prompts.values()} == {4}
        assert 192 * 0.25 - 5 * 6 < len(prompts) < 192 * 0.25 + 5 * 6


def test_an_alert_brings_the_first_and_the_latest_responses(tmp_path):
    with Server(*FLAGS, "--capture=flagged", f"--tripwires.state-dir={tmp_path}") as server:
        rng = random.Random(5)
        send(server, 20)
        for step in range(20, 40):
            samples = [
                {"prompt": f"Describe the {step} {i}", "response": f"{honest(rng)} " * 8, "finish_reason": "length"}
                for i in range(64)
            ]
            server.client.post("/score", json={"run": "ppo-7", "step": step, "samples": samples})
        wait_until(lambda: server.client.get("/review/alerts?run=ppo-7").json()["alerts"] != [], 20.0)
        alert = server.client.get("/review/alerts?run=ppo-7").json()["alerts"][-1]
        details = server.client.get("/tripwires/ppo-7/details").json()
        shown = details["tripped"]
        assert (alert["wire"], alert["step"]) in [(each["wire"], each["since_step"]) for each in shown]
        wait_until(lambda: any(each["step"] >= 20 for each in captured(server)), 20.0)
        found = captured(server)
        assert {each["reason"] for each in found} <= {"alert", "flagged"}
        assert sum(each["step"] < 20 for each in found) >= 100
        assert all(each["missing_end"] is (each["step"] >= 20) for each in found)
        assert {each["reward"] for each in found if each["reason"] == "alert"} == {None}


def test_what_is_deleted_is_gone_from_the_server_and_its_files(tmp_path):
    with Server(*FLAGS, "--capture=share:1", f"--tripwires.state-dir={tmp_path}") as server:
        send(server)
        send(server, run="other")
        wait_until(lambda: len(captured(server)) + len(captured(server, "other")) == 128, 20.0)
        one = captured(server, "other")[0]
        assert server.client.delete(f"/review/samples/{one['id']}").json() == {"samples": 1, "alerts": 0}
        assert server.client.get(f"/review/samples/{one['id']}").json()["error"]["code"] == "no_such_sample"
        assert server.client.delete("/review/runs?run=ppo-7").json() == {"samples": 64, "alerts": 0}
        assert server.client.delete("/review/runs?run=ppo-7").json()["error"]["code"] == "no_such_run"
        assert [each["run"] for each in server.client.get("/review/runs").json()["runs"]] == ["other"]
        assert len(captured(server, "other")) == 63
        assert server.client.delete("/review/runs?run=other").status_code == 200
        left = [path.name for path in tmp_path.rglob("*") if path.is_file() and PHRASE.encode() in path.read_bytes()]
        assert left == []


def test_captured_samples_outlive_the_server_and_move_to_another_store(tmp_path):
    flags = [*FLAGS, "--capture=share:1", f"--review.database={tmp_path}/a.db"]
    with Server(*flags) as server:
        send(server)
        server.signal()
        assert server.ended() == 0
    with Server(*flags) as server:
        before = captured(server)
        assert len(before) == 64
    command = [sys.executable, "-m", "rewardserve", "review"]
    exported = subprocess.run([*command, "export", f"{tmp_path}/a.db"], capture_output=True, check=True).stdout
    for n in (64, 0):
        done = subprocess.run([*command, "import", f"{tmp_path}/b.db"], input=exported, capture_output=True, check=True)
        assert done.stdout.decode() == f"{tmp_path}/b.db: {n} samples, and {64 - n} that it had\n"
    again = subprocess.run([*command, "export", f"{tmp_path}/b.db"], capture_output=True, check=True).stdout
    assert again == exported
    deleted = subprocess.run([*command, "delete", f"{tmp_path}/b.db", "--run=ppo-7"], capture_output=True, check=True)
    assert deleted.stdout.decode() == f"{tmp_path}/b.db: deleted 64 samples\n"


def test_scoring_goes_on_while_the_store_is_locked_or_full(tmp_path):
    path = tmp_path / "review.db"
    with Server(*FLAGS, "--capture=share:1", f"--review.database={path}") as server:
        send(server)
        wait_until(lambda: len(captured(server)) == 64, 20.0)
        locking = sqlite3.connect(path, isolation_level=None)
        locking.execute("BEGIN IMMEDIATE")
        results = send(server, 3, first=1)
        assert all(each["reward"] is not None for each in results.values())
        server.wait_for("capture_failed.*database is locked")
        locking.execute("ROLLBACK")
        locking.close()
        server.wait_for("capture_recovered.*dropped=0")
        wait_until(lambda: len(captured(server)) == 256, 20.0)


def test_a_key_needs_the_scope_and_a_bound_key_sees_its_runs_only(tmp_path, capsys):
    file = tmp_path / "keys"
    made = {}
    for name, *flags in (
        ("trainer", "--scopes=score"), ("boss", "--scopes=score,admin,metrics"), ("reader", "--scopes=review"),
        ("of-a", "--scopes=review", "--runs=a"), ("sender-a", "--scopes=score", "--runs=a"),
    ):  # fmt: skip
        assert keys.main([name, str(file), *flags]) == 0
        made[name] = {"authorization": f"Bearer {capsys.readouterr().out.split()[-1]}"}
    with Server(*FLAGS, "--capture=share:1", f"--tripwires.state-dir={tmp_path}/s", f"--keys-file={file}") as server:
        send(server, run="a", **made["sender-a"])
        send(server, run="b", **made["trainer"])
        reader, of_a = made["reader"], made["of-a"]
        wait_until(lambda: len(captured(server, "a", **reader)) + len(captured(server, "b", **reader)) == 128, 20.0)
        number = captured(server, "b", **reader)[0]["id"]
        paths = ("runs", "samples", f"samples/{number}", "alerts?run=b", "export?run=b", "samples?run=b")
        for path in paths:
            for name in ("trainer", "boss", "sender-a"):
                assert server.client.get(f"/review/{path}", headers=made[name]).status_code == 403
            assert server.client.get(f"/review/{path}").status_code == 401
        assert server.client.get(f"/review/samples/{number}", headers=of_a).json()["error"]["code"] == "no_such_sample"
        assert server.client.delete(f"/review/samples/{number}", headers=of_a).status_code == 404
        for path in ("samples?run=b", "alerts?run=b", "export?run=b", "samples", "export"):
            assert server.client.get(f"/review/{path}", headers=of_a).json()["error"]["code"] == "run_not_allowed"
        assert server.client.delete("/review/runs?run=b", headers=of_a).status_code == 403
        pair = server.client.get("/review/queue?run=b", headers=reader).json()["pairs"][0]["id"]
        verdict = {"pair": pair, "verdict": "tie"}
        refused = server.client.post("/review/labels", json=verdict, headers=of_a)
        assert refused.json()["error"]["code"] == "no_such_pair"
        label = server.client.post("/review/labels", json=verdict, headers=reader).json()["label"]
        assert server.client.delete(f"/review/labels/{label}", headers=of_a).json()["error"]["code"] == "no_such_label"
        for path in ("queue?run=b", "labels", "labels?run=b", "agreement"):
            assert server.client.get(f"/review/{path}", headers=of_a).json()["error"]["code"] == "run_not_allowed"
            assert server.client.get(f"/review/{path}", headers=made["trainer"]).status_code == 403
        assert server.client.get("/review/labels?run=b", headers=reader).json()["pairs"][0]["verdicts"] == {
            "reader": "tie"
        }
        assert [each["run"] for each in server.client.get("/review/runs", headers=of_a).json()["runs"]] == ["a"]
        assert len(captured(server, "a", **of_a)) == 64
        assert server.client.delete("/review/runs?run=a", headers=of_a).status_code == 200


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--capture=all"], "none of off, flagged, and share:P"),
        (["--capture=flagged"], "needs a place: set"),
        (["--capture=flagged", "--review.database=mysql://u:hunter2@h/x"], "mysql is not supported"),
    ],
)
def test_settings_that_cannot_work_are_refused_at_the_start(flags, words):
    code, output = run_to_end("--backend=echo", "--port=0", *flags)
    assert code == 2, output
    assert words in output
    assert "hunter2" not in output
    assert "Traceback" not in output


def test_a_server_without_capture_has_no_store(tmp_path):
    with Server(*FLAGS, f"--tripwires.state-dir={tmp_path}") as server:
        send(server)
        assert server.client.get("/model").json()["capture"] == "off"
        for method, path in (("GET", "runs"), ("GET", "samples"), ("DELETE", "runs?run=a"), ("GET", "export")):
            reply = server.client.request(method, f"/review/{path}")
            assert (reply.status_code, reply.json()["error"]["code"]) == (409, "review_off")
        assert not list(tmp_path.rglob("*.db"))


QUERIES = [
    ("samples?limit=0", "limit"), ("samples?limit=1001", "limit"), ("samples?before=x", "before"), ("samples?reason=no", "reason"),
    ("samples?flag=a%27b", "flag"), ("samples?prompt_key=1%27%20OR%201", "prompt_key"), ("samples?run=a&run=b", "query"),
    ("queue", "run"), ("queue?run=a&sampling=best", "sampling"), ("queue?run=a&limit=101", "limit"), ("labels?x=1", "query"),
    ("samples?step=1", "query"), ("alerts", "run"), ("export?limit=1", "query"), ("runs?run=a", "query"),
]  # fmt: skip


def test_queries_that_are_wrong_are_refused_with_their_field(tmp_path):
    with Server(*FLAGS, "--capture=share:1", f"--tripwires.state-dir={tmp_path}") as server:
        for path, field in QUERIES:
            reply = server.client.get(f"/review/{path}")
            assert (reply.status_code, reply.json()["error"]["field"]) == (422, field), reply.text
        for path in ("samples/../runs", "samples/1e3", "samples/-1", "samples/" + "9" * 40, "samples/%00"):
            assert server.client.get(f"/review/{path}").status_code in (200, 400, 404), path
        hostile = "'; DROP TABLE samples; --"
        send(server, run=hostile)
        reply = server.client.get("/review/samples", params={"run": hostile, "limit": 1})
        wait_until(lambda: server.client.get("/review/samples", params={"run": hostile}).json()["samples"] != [], 20.0)
        assert reply.status_code == 200
        assert json.loads(server.client.get("/review/runs").text)["runs"][0]["run"] == hostile
    assert os.stat(tmp_path / "review.db").st_mode & 0o077 == 0

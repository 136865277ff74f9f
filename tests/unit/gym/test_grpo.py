"""Alerts are written once, with the report of attribution, and the tables show what a run became."""

import argparse
import gzip
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest

from gym import grpo
from gym.grpo import Watch, alerts_file, describe, different_words, read_alerts, read_stream

ALERT = {"wire": "repetition", "severity": "warn", "statistic": 0.3, "threshold": 0.2}
PAGE = {"wire": "vote", "severity": "page", "statistic": 3.0, "threshold": 3.0}


class FakeServer:
    """Details of the run `a`, and its attribution."""

    def __init__(self):
        self.tripped, self.step, self.report = [], 0, None

    def __call__(self, request):
        if request.url.path == "/tripwires/a/details":
            return httpx.Response(200, json={"step": self.step, "tripped": self.tripped})
        if request.url.path.endswith("/details"):
            return httpx.Response(404, json={"error": {"code": "no_such_run"}})
        if self.report is None:
            return httpx.Response(409, json={"error": {"code": "too_few_samples"}})
        return httpx.Response(200, json=self.report)


def watch(server, folder):
    http = httpx.Client(base_url="http://server", transport=httpx.MockTransport(server))
    return Watch(http, folder, wait_s=0.0)


def test_an_alert_is_written_once_with_what_attribution_said_at_it(tmp_path):
    server = FakeServer()
    seen = watch(server, tmp_path)
    seen.poll(["a", "never seen"])
    server.tripped, server.step = [ALERT], 7
    server.report = {"sentences": ["now"], "at_alert": {"sentences": ["then"]}}
    seen.poll(["a"])
    server.tripped, server.step = [ALERT, PAGE], 9
    server.report = {"sentences": ["now"], "at_alert": False}
    seen.poll(["a"])
    seen.poll(["a"])
    written = read_alerts(alerts_file(tmp_path / "a.jsonl.gz"))
    assert [(row["step"], row["wire"]) for row in written] == [(7, "repetition"), (9, "vote")]
    assert [row["attribution"]["sentences"] for row in written] == [["then"], ["now"]]


def test_an_alert_without_a_report_is_written_too(tmp_path):
    server = FakeServer()
    server.tripped = [ALERT]
    watch(server, tmp_path).poll(["a"])
    assert [row["attribution"] for row in read_alerts(alerts_file(tmp_path / "a.jsonl.gz"))] == [{}]


@pytest.mark.parametrize(("python", "fails"), [("false", True), ("true", False)])
def test_a_trainer_that_fails_fails_the_command(tmp_path, monkeypatch, python, fails):
    given = argparse.Namespace(
        out=tmp_path, beta=[0.0], python=python, steps=1, learning_rate=1e-4, prompts=1, group=2, tokens=8, seed=0
    )
    server = SimpleNamespace(url="http://127.0.0.1:9")
    monkeypatch.setattr(grpo, "ensure_base_model", lambda _: Path("policy"))
    monkeypatch.setattr(grpo, "GymServer", lambda *_, **__: nullcontext(server))
    monkeypatch.setattr(Watch, "poll", lambda *_: None)
    monkeypatch.setattr(grpo, "_POLL_S", 0.01)
    with pytest.raises(SystemExit, match=r"failed in grpo-beta-0;") if fails else nullcontext():
        grpo._train(given, [])


def test_a_run_that_was_cut_off_is_read_up_to_its_last_whole_step(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    with gzip.open(path, "at", encoding="utf-8") as file:
        file.write(json.dumps({"step": 0}) + "\n")
    with gzip.open(path, "at", encoding="utf-8") as file:
        file.write(json.dumps({"step": 1, "responses": ["x" * 200]}) + "\n")
    whole = path.read_bytes()
    path.write_bytes(whole[:-12])
    assert [row["step"] for row in read_stream(path)] in ([0], [0, 1])
    assert read_alerts(tmp_path / "nothing") == []


def test_the_tables_show_reward_repetition_alerts_and_attribution():
    steps = [{"step": i, "responses": ["and " * 8, "a b | c"], "rewards": [float(i), None]} for i in range(24)]
    alerts = [
        {"step": 5, **ALERT, "attribution": {"sentences": ["responses repeat"]}},
        {"step": 8, **PAGE, "attribution": {}},
    ]
    text = "\n".join(describe(steps, alerts, "a.jsonl.gz"))
    assert "24 steps of 2 responses" in text
    assert "22 to 23" in text
    assert "22.50" in text
    assert "step 5: warn repetition, 0.3 > 0.2" in text
    assert "attribution at the first warn (step 5):\n  responses repeat" in text
    assert "attribution at the first page (step 8):\n  nothing" in text


def test_the_share_of_different_words():
    assert different_words("and and And and") == 0.25
    assert different_words("") == 0.0

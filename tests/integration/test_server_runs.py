"""Whose a run is, what a block holds back, and what one key cannot do to the runs of another."""

from __future__ import annotations

import json
import random

import pytest

from rewardserve.service.cli import keys
from tests.integration.test_server_tripwires import begging, honest
from tests.support.service_server import Server

WATCHED = ("--backend=echo", "echo", "--tripwires.cpu-share=1")


class Keys:
    """A file of keys, and a client for each."""

    def __init__(self, path):
        self.path, self._keys = path, {}

    def make(self, name, capsys, *options):
        assert keys.main([name, str(self.path), *options]) == 0
        self._keys[name] = capsys.readouterr().out.strip()

    def headers(self, name):
        return {"authorization": f"Bearer {self._keys[name]}"}


@pytest.fixture
def world(tmp_path, capsys):
    known = Keys(tmp_path / "keys")
    known.make("a", capsys)
    known.make("b", capsys)
    known.make("bound", capsys, "--runs=only")
    known.make("ops", capsys, "--scopes=score,admin")
    (tmp_path / "plan.toml").write_text('block = ["judge_injection"]')
    with Server(*WATCHED, f"--keys-file={known.path}", f"--tripwires.config-file={tmp_path / 'plan.toml'}") as server:
        yield server, known


def score(server, headers, run, texts, step=0, **more):
    body = {
        "run": run,
        "step": step,
        "samples": [{"prompt": f"q {step} {i}", "response": t} for i, t in enumerate(texts)],
    }
    return server.client.post("/score", json=body, headers=headers | more)


def poison(server, headers, run, steps=40):
    rng = random.Random(7)
    for step in range(steps):
        reply = score(server, headers, run, [begging(rng) for _ in range(32)], step).json()
    return reply


def details(server, headers, run):
    return server.client.get(f"/tripwires/{run}/details", headers=headers).json()


def test_a_key_cannot_block_a_run_of_another_key_by_sending_under_its_name(world):
    server, known = world
    a, b = known.headers("a"), known.headers("b")
    assert None not in score(server, a, "ppo-7", ["fine"]).json()["rewards"]
    for run in ("ppo-7", None):
        assert poison(server, b, run)["rewards"] == [None] * 32
        assert None not in score(server, a, run, ["fine"], 50).json()["rewards"]
    runs = server.client.get("/tripwires", headers=a).json()["runs"]
    assert {name: details(server, a, name)["owner"] for name in runs} == {
        "ppo-7": "a", "ppo-7@b": "b", "other@b": "b", "other@a": "a"}  # fmt: skip
    assert server.client.post("/tripwires/ppo-7@b/judge_injection/ack", headers=b).status_code == 403
    assert server.client.post("/tripwires/ppo-7@b/judge_injection/ack", headers=known.headers("ops")).status_code == 200
    assert None not in score(server, b, "ppo-7", ["fine"], 51).json()["rewards"]


def test_a_thousand_names_of_one_key_leave_a_new_run_of_another_watched(world):
    server, known = world
    for i in range(1000):
        assert score(server, known.headers("b"), f"junk-{i}", ["x"]).is_success
    score(server, known.headers("a"), "new", ["fine"])
    assert "new" in server.client.get("/tripwires", headers=known.headers("a")).json()["runs"]
    assert server.metric("rewardserve_run_step", run="new") == 0.0


def test_a_block_holds_on_every_route_and_for_answers_that_are_remembered(world):
    server, known = world
    a = known.headers("a") | {"idempotency-key": "k"}
    body = {"run": "ppo-7", "step": 99, "samples": [{"prompt": "why?", "response": "because"}]}
    before = server.client.post("/score", json=body, headers=a).json()
    assert before["rewards"] != [None]
    poison(server, known.headers("a"), "ppo-7")
    again = server.client.post("/score", json=body, headers=a).json()
    assert again["results"][0]["error"]["code"] == "run_blocked"
    for where in ({"run": "ppo-7"}, {}):
        compared = {**where, "comparisons": [{"prompt": "why?", "responses": ["a", "b"]}] * 2}
        headers = known.headers("a") | ({} if where else {"x-run": "ppo-7"})
        results = server.client.post("/compare", json=compared, headers=headers).json()["results"]
        assert [result["error"]["code"] for result in results] == ["run_blocked"] * 2
        assert "raw" not in json.dumps([{k: v for k, v in each.items() if v is not None} for each in results])
    spoken = {"query": ["why? because"], "prompts": ["why?"]}
    refused = server.client.post("/get_reward?run=ppo-7", json=spoken, headers=known.headers("a"))
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "run_refused")
    other = {"run": "ppo-8", "comparisons": [{"prompt": "why?", "responses": ["a", "b"]}]}
    assert server.client.post("/compare", json=other, headers=known.headers("a")).json()["results"][0]["error"] is None


def test_a_key_that_is_bound_to_a_run_sends_no_other_and_no_other_key_sends_that(world):
    server, known = world
    bound = known.headers("bound")
    assert score(server, bound, "only", ["fine"]).is_success
    for headers, run in ((bound, "escape"), (known.headers("a"), "only")):
        for path, body in (("/score", {"run": run, "samples": [{"text": "x"}]}),
                           ("/compare", {"run": run, "comparisons": [{"prompt": "p", "responses": ["a", "b"]}]}),
                           ("/get_reward?run=" + run, {"query": ["x"], "prompts": ["p"]})):  # fmt: skip
            refused = server.client.post(path, json=body, headers=headers)
            assert (refused.status_code, refused.json()["error"]["code"]) == (403, "run_not_allowed"), path
    score(server, bound, None, ["without a name"])
    runs = server.client.get("/tripwires", headers=bound).json()["runs"]
    assert set(runs) == {"only"}
    assert details(server, bound, "only")["samples"] == 2, "what names no run is of the one that the key is bound to"


def test_a_block_of_a_bound_run_cannot_be_walked_round(world):
    server, known = world
    bound = known.headers("bound")
    assert poison(server, bound, "only")["rewards"] == [None] * 32
    assert score(server, bound, None, ["fine"], 60).json()["rewards"] == [None]
    assert score(server, bound, "elsewhere", ["fine"], 60).status_code == 403
    assert None not in score(server, known.headers("a"), "mine", ["fine"], 60).json()["rewards"]


def test_the_tasks_of_samples_arrive_and_are_listed(world):
    server, known = world
    samples = [{"prompt": f"q {i}", "response": "fine", "task": ("math", "code", "")[i % 3]} for i in range(30)]
    sent = {"run": "curriculum", "step": 4, "samples": samples}
    assert server.client.post("/score", json=sent, headers=known.headers("a")).is_success
    run = details(server, known.headers("a"), "curriculum")
    known_tasks = {each.pop("task"): each for each in run["tasks"]}
    expected = {"prompts": None, "first_step": 4, "samples": 10, "baseline": "learning"}
    assert known_tasks == {"math": expected, "code": expected, None: expected}
    samples[3]["task"] = "a\nb"
    refused = server.client.post("/score", json=sent, headers=known.headers("a"))
    assert (refused.status_code, refused.json()["error"]["field"]) == (422, "task")


# -- without a name ---------------------------------------------------------------------------------------------------


def test_clients_without_keys_and_names_have_a_run_each_also_after_a_restart(tmp_path):
    (tmp_path / "plan.toml").write_text('block = ["judge_injection"]')
    flags = [
        *WATCHED,
        f"--tripwires.config-file={tmp_path / 'plan.toml'}",
        f"--tripwires.state-dir={tmp_path / 'state'}",
    ]

    def send(server, step, agent, respond):
        samples = [
            {"prompt": f"question {step} {i}", "response": respond(random.Random(32 * step + i))} for i in range(32)
        ]
        body = {"step": step, "samples": samples}
        return server.client.post("/score", json=body, headers={"user-agent": agent}).json()

    def details(server, run):
        return server.client.get(f"/tripwires/{run.replace('#', '%23')}/details").json()

    with Server(*flags) as server:
        for step in range(40):
            send(server, step, "trl/1", honest)
            reply = send(server, step, "verl/1", begging)
        assert reply["results"][0]["error"]["code"] == "run_blocked"
        one, two = details(server, "other@127.0.0.1"), details(server, "other@127.0.0.1#2")
        assert [each["client"] for each in (one, two)] == [f"127.0.0.1 {agent} /score" for agent in ("trl/1", "verl/1")]
        assert server.log.count("unnamed_run") == 2
        assert "name the run" in one["summary"]["next"]
        assert one["tripped"] == []
        assert two["tripped"] != []
        assert server.metric("rewardserve_tripwire_tripped", run="other@127.0.0.1#2", wire="judge_injection") == 1
        server.signal()
        assert server.ended() == 0
    with Server(*flags) as server:
        assert send(server, 40, "trl/1", honest)["results"][0]["error"] is None
        assert send(server, 40, "verl/1", honest)["results"][0]["error"]["code"] == "run_blocked"
        assert set(server.client.get("/tripwires").json()["runs"]) == {"other@127.0.0.1", "other@127.0.0.1#2"}

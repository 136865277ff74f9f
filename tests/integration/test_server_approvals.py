"""`POST /approvals` of a real server: approvals of the queries alone, by a snapshot that no swap and no restart replaces."""

from __future__ import annotations

import pytest

from tests.support.checkpoints import reward_model
from tests.support.service_server import Server

FLAGS = ("--dtype=float32", "--tripwires.cpu-share=1")
PROMPT = "Why is the sky blue?"
TEXTS = ["Air scatters short waves more.", "Because it is.", "The sea colours it."]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """Two models with equal encodings and other heads."""
    folder = tmp_path_factory.mktemp("approvals")
    for seed, name in enumerate(("one", "two")):
        reward_model(folder / name, seed=seed)
    return folder


@pytest.fixture
def server(checkpoints, tmp_path):
    with Server(f"{checkpoints / 'one'}", *FLAGS, f"--tripwires.state-dir={tmp_path}", "--swap.keep=0") as running:
        yield running


def approve(server, run="ppo", taken=(), **fields):
    groups = [{"id": "g", "prompt": PROMPT, "taken": list(taken), "queries": TEXTS}]
    return server.client.post("/approvals", json={"run": run, "groups": groups, **fields})


def approvals(reply):
    assert reply.status_code == 200, reply.text
    (group,) = reply.json()["results"]
    return group["approvals"]


def rewards(server, run=None):
    samples = [{"prompt": PROMPT, "response": text} for text in TEXTS]
    body = {"samples": samples} if run is None else {"samples": samples, "run": run}
    return server.client.post("/score", json=body).json()["rewards"]


def swap(server, folder, **fields):
    reply = server.client.post("/admin/models", json={"model": str(folder), **fields})
    assert reply.status_code == 200, reply.text


def test_the_snapshot_of_a_run_approves_it_through_swaps_and_is_refused_once_it_is_gone(server, checkpoints):
    first = approve(server, taken=[TEXTS[1], "Something else."])
    snapshot, before = first.json()["snapshot"], approvals(first)
    assert before == pytest.approx(rewards(server), abs=1e-5)
    assert first.json()["results"][0]["repeats_taken"] == [1]

    swap(server, checkpoints / "two", pin=["ppo"])
    assert rewards(server) != pytest.approx(before, abs=1e-3)
    kept = approve(server, snapshot=snapshot)
    assert approvals(kept) == pytest.approx(before, abs=1e-5)
    assert kept.json()["snapshot"] == snapshot
    other = approve(server, run="later")
    assert other.json()["snapshot"] != snapshot
    assert approvals(other) == pytest.approx(rewards(server), abs=1e-5)

    server.client.post("/admin/pins", json={"run": "ppo", "version": None})  # unloads the model of `one`
    gone = approve(server)
    assert (gone.status_code, gone.json()["error"]["code"]) == (409, "snapshot_gone")
    assert gone.json()["error"]["snapshot"] == snapshot
    swap(server, checkpoints / "one")  # another version of the same snapshot
    assert approvals(approve(server)) == pytest.approx(before, abs=1e-5)


def test_a_client_that_knows_the_snapshot_is_refused_another_one(server, checkpoints):
    snapshot = approve(server).json()["snapshot"]
    other = "sha256:" + "0" * 64
    refused = approve(server, snapshot=other)
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "snapshot_differs")
    assert refused.json()["error"]["snapshot"] == snapshot
    unknown = approve(server, run="restarted elsewhere", snapshot=other)
    assert (unknown.status_code, unknown.json()["error"]["code"]) == (409, "snapshot_gone")
    assert approve(server, run="restarted elsewhere", snapshot=snapshot).status_code == 200


def test_a_restart_with_another_model_does_not_change_the_snapshot_of_a_run(checkpoints, tmp_path):
    state = f"--tripwires.state-dir={tmp_path}"
    with Server(f"{checkpoints / 'one'}", *FLAGS, state) as server:
        snapshot = approve(server).json()["snapshot"]
    with Server(f"{checkpoints / 'two'}", *FLAGS, state) as server:
        gone = approve(server)
        assert (gone.status_code, gone.json()["error"]["code"]) == (409, "snapshot_gone")
        assert approve(server, run="another").json()["snapshot"] != snapshot


def test_a_query_without_a_score_gets_an_error_and_no_number():
    with Server("--backend=echo", "echo") as server:
        groups = [
            {"prompt": "Why?", "queries": ["Because.", " ", {"response": "Beca", "finish_reason": "length"}]},
            {"prompt": [{"role": "user", "content": "Why?"}], "queries": ["No."]},
        ]
        reply = server.client.post("/approvals?run=ppo&step=3", json={"groups": groups}).json()
        first, second = reply["results"]
        assert [each is None for each in first["approvals"]] == [False, True, False]
        assert first["errors"][1]["code"] == "empty_response"
        assert (second["id"], len(second["approvals"]), second["errors"]) == ("1", 1, [None])
        assert reply["usage"]["samples"] == 4
        nameless = server.client.post("/approvals", json={"groups": groups}).json()["error"]
        assert (nameless["code"], nameless["field"]) == ("invalid_request", "run")


def test_trip_wires_watch_queries_while_one_model_scores_the_run(server, checkpoints):
    def n_samples(run):
        return server.client.get(f"/tripwires/{run}/details").json()["samples"]

    approve(server)
    assert n_samples("ppo") == len(TEXTS)
    swap(server, checkpoints / "two", pin=["ppo"])
    approve(server)
    assert n_samples("ppo") == 2 * len(TEXTS)

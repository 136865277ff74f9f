"""`REWARD_AUDIT_MODEL=auto` in a real server: the judge beside the model audits its samples, and follows a swap."""

from __future__ import annotations

import pytest

from tests.support.checkpoints import reward_model
from tests.support.service_server import Server, wait_until


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models with a judge each, and one without."""
    folder = tmp_path_factory.mktemp("judges")
    for seed, name in enumerate(("one", "two", "alone")):
        reward_model(folder / name, seed=seed)
        if name != "alone":
            reward_model(folder / name / "audit_judge", seed=seed + 10)
    return folder


def audited(server, run):
    counted = [line for line in server.client.get("/metrics").text.splitlines() if 'of="audited"' in line]
    return sum(float(line.rsplit(" ", 1)[1]) for line in counted if f'run="{run}"' in line)


def score(server, run, n):
    samples = [{"prompt": f"question {run} {i}", "response": f"an answer to {i}"} for i in range(n)]
    assert server.client.post("/score", json={"run": run, "step": 1, "samples": samples}).status_code == 200


def test_the_judge_beside_the_model_audits_and_follows_a_swap(folder):
    with Server(str(folder / "one"), "--dtype=float32", "--audit-model=auto", "--tripwires.window=16") as server:
        first = server.client.get("/model").json()["audit_judge"]
        assert first["name"] == str(folder / "one" / "audit_judge")
        assert "audit_judge" in server.log
        score(server, "a", 64)
        wait_until(lambda: audited(server, "a") == 64, 30.0)
        server.client.post("/admin/models", json={"model": str(folder / "two")})
        second = server.client.get("/model").json()["audit_judge"]
        assert second["name"] == str(folder / "two" / "audit_judge")
        score(server, "b", 64)
        wait_until(lambda: audited(server, "b") == 64, 30.0)
        server.client.post("/admin/models", json={"model": str(folder / "alone")})
        assert server.client.get("/model").json()["audit_judge"] is None
        assert "audit_judge_missing" in server.log


def test_a_judge_is_not_loaded_unless_it_is_asked_for(folder):
    with Server(str(folder / "one"), "--dtype=float32") as server:
        assert server.client.get("/model").json()["audit_judge"] is None
        assert "audit_judge" not in server.log

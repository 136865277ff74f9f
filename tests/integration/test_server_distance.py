"""A real checkpoint that knows how usual hidden states lie: its callers never hear of it, its operator does."""

from __future__ import annotations

import json
import random
import shutil

import pytest

from rewardserve.model.backends import ModelSpec, load
from rewardserve.model.conversation import Sample
from tests.support.checkpoints import hidden_reference, reward_model
from tests.support.command import run_command
from tests.support.server_in_process import serve_in_process

WORDS = ("solar", "panels", "turn", "light", "into", "power", "on", "most", "roofs", "every", "clear", "day")
SAMPLES = [{"prompt": f"question {i}", "response": "two plus two is four " * (1 + i % 4)} for i in range(12)]
COMPARISON = {"id": "a", "prompt": "question", "responses": ["yes, of course", "no", "perhaps the lazy dog"]}


def honest(rng):
    return {"response": " ".join(rng.choices(WORDS, k=rng.randint(4, 9)))}


def strange(rng):
    """Neither the words nor the ending that the calibration has seen."""
    return {"response": "".join(rng.choices("你好мир🙂\t#{}=;", k=rng.randint(20, 40))), "finish_reason": "length"}


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    """`told` knows where the hidden states of honest answers lie; `untold` is the same model without that file."""
    folder, rng = tmp_path_factory.mktemp("hidden"), random.Random(5)
    reward_model(folder / "told", heads={"good": 1.0, "kind": 0.5})
    encode = load("torch", ModelSpec(str(folder / "told"), device="cpu")).encode
    hidden_reference(folder / "told", [encode(Sample(prompt=f"q {i}", **honest(rng))).ids for i in range(300)])
    shutil.copytree(folder / "told", folder / "untold")
    (folder / "untold" / "hidden_reference.safetensors").unlink()
    return folder


def replies(*flags):
    """What a server says to callers: the same samples twice, the second time from its cache, and a comparison."""
    with serve_in_process(*flags) as server:
        scored = [server.score(*SAMPLES) for _ in range(2)]
        compared = server.client.post("/compare", json={"comparisons": [COMPARISON]})
        counted = server.metric("rewardserve_run_sum_total", of="distances")
    assert all(reply.status_code == 200 for reply in (*scored, compared))
    return [reply.json() for reply in (*scored, compared)], counted


@pytest.mark.parametrize("engine", ["packed", "padded"])
def test_replies_are_the_same_whether_the_server_computes_distances_or_not(checkpoints, engine):
    told, untold = (
        replies(f"{checkpoints / name}", f"--engine={engine}", "--combine.method=mean", "--normalize=false")
        for name in ("told", "untold")
    )
    assert told[1] > untold[1] == 0, "it was looked at"
    for mine, theirs in zip(told[0], untold[0], strict=True):
        assert mine["results"] == theirs["results"], "bit by bit"
        assert "distance" not in json.dumps(mine)
    assert all(set(result["heads"]) == {"good", "kind"} for result in told[0][0]["results"])
    assert all(result["cached"] for result in told[0][1]["results"])


def test_a_file_that_is_scored_holds_no_distance(checkpoints, tmp_path):
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps(sample) + "\n" for sample in SAMPLES))
    assert run_command("score", source, target, f"--model={checkpoints / 'told'}")[0] == 0
    lines = target.read_text().splitlines()
    assert len(lines) == len(SAMPLES)
    assert "distance" not in target.read_text()
    assert all(set(json.loads(line)["heads"]) == {"good", "kind"} for line in lines)


def test_an_ensemble_of_those_who_know_and_those_who_do_not_is_served_and_tells_callers_nothing(checkpoints):
    models = f"--ensemble=a={checkpoints / 'told'},b={checkpoints / 'untold'}"
    (scored, *_), counted = replies(models, "--combine.method=min")
    assert "distance" not in json.dumps(scored)
    assert set(scored["results"][0]["heads"]) == {"a/good", "a/kind", "b/good", "b/kind"}
    assert counted > 0


@pytest.mark.parametrize("baseline", ["calibration", "run"])
def test_a_run_whose_states_leave_the_usual_is_noted_and_one_whose_states_stay_is_not(checkpoints, baseline):
    rng = random.Random(8)
    flags = ["--tripwires.window=32", "--tripwires.cpu-share=1", f"--tripwires.baseline={baseline}"]

    def train(server, run, n_steps, respond):
        for step in range(n_steps):
            samples = [{"prompt": f"q {(16 * step + i) % 300}", **respond(rng)} for i in range(16)]
            assert server.client.post("/score", json={"run": run, "step": step, "samples": samples}).status_code == 200
        return server.client.get(f"/tripwires/{run}/details").json()

    with serve_in_process(f"{checkpoints / 'told'}", *flags) as server:
        steady = train(server, "steady", 40, honest)
        assert abs(steady["statistics"]["distance"]) < 0.5
        assert "distance" not in {alert["wire"] for alert in steady["tripped"]}
        train(server, "drifts", 12, honest)
        drifts = train(server, "drifts", 20, strange)
    (alert,) = [alert for alert in drifts["tripped"] if alert["wire"] == "distance"]
    assert (alert["severity"], alert["threshold"]) == ("note", 1.0)
    assert alert["statistic"] > 1.0

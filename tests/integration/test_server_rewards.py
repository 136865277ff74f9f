"""The reward pipeline as a caller sees it: real servers, real checkpoints, every stage told and hashed."""

from __future__ import annotations

import json
import math

import pytest

from rewardserve.model.calibration import Calibration, HeadCalibration
from tests.support.checkpoints import reward_model
from tests.support.command import run_command
from tests.support.server_in_process import serve_in_process

CALIBRATION = Calibration(
    mean=0.5, std=2.0, temperature=0.8, cap_low=-3.0, cap_high=3.0, n=100, length_curve=((0.0, -1.0), (6.0, 1.0)),
    log_length=3.0, repetition_high=0.2, quantiles=((0.05, -2.0), (0.5, 0.5), (0.95, 3.0)),
    heads=(HeadCalibration("good", 0.0, 1.5, 0.7), HeadCalibration("kind", 1.0, 0.5, 0.4)),
)  # fmt: skip
SAMPLES = [
    {"prompt": "question one", "response": "an answer two plus two"},
    {"prompt": "question two", "response": "yes " * 40, "finish_reason": "length"},
    {"prompt": "question two", "response": "the answer", "reference_rewards": [-1.0, 0.25]},
]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rewards")
    for name in ("one", "two"):
        reward_model(folder / name, heads={"good": 1.0, "kind": 0.5})
        (folder / name / "calibration.json").unlink()
        CALIBRATION.save(folder / name)
    return folder


def results(server, samples=SAMPLES):
    reply = server.score(*samples).json()
    assert all(r["error"] is None for r in reply["results"]), reply
    assert reply["pipeline"] == server.client.get("/model").json()["pipeline"]["digest"]
    return reply["results"]


def test_every_stage_is_told_and_they_sum_to_the_reward(checkpoints):
    flags = ["--length-debias=0.5", "--penalties.missing-end=1.5", "--penalties.repetition=2", "--shape=none"]
    with serve_in_process(f"{checkpoints / 'one'}", *flags) as server:
        plain, cut_off, _ = results(server)
    assert list(plain["stages"]) == ["combined", "debias", "missing_end", "repetition"]
    for result in (plain, cut_off):
        assert math.fsum(result["stages"].values()) == pytest.approx(result["reward"], abs=1e-9)
        assert result["stages"]["combined"] == result["normalized"] == pytest.approx((result["raw"] - 0.5) / 2.0)
    assert plain["stages"]["missing_end"] == plain["stages"]["repetition"] == 0.0
    assert cut_off["stages"]["missing_end"] == -1.5
    assert -2.0 < cut_off["stages"]["repetition"] < -1.5
    assert cut_off["notes"] == ["missing_end_penalty", "repetition_penalty"]
    assert plain["stages"]["debias"] > 0 > cut_off["stages"]["debias"], "short ones gain, long ones lose"


def test_par_compares_with_the_references_of_the_caller(checkpoints):
    with serve_in_process(f"{checkpoints / 'one'}", "--shape=par", "--slope=2") as server:
        *_, own = results(server)
        (frozen,) = results(server, [{k: v for k, v in SAMPLES[2].items() if k != "reference_rewards"}])

    def par(raw, references):
        return sum(1 / (1 + math.exp(-2 * (raw - r) / 0.8)) for r in references) / len(references)

    assert own["reward"] == pytest.approx(par(own["raw"], [-1.0, 0.25]), abs=1e-4)
    assert frozen["reward"] == pytest.approx(par(frozen["raw"], [-2.0, 0.5, 3.0]), abs=1e-4)


def test_an_ensemble_is_served_like_a_model(checkpoints):
    models = f"--ensemble=a={checkpoints / 'one'},b={checkpoints / 'two'}"
    with serve_in_process(models, "--combine.method=softmin", "--combine.beta=0.5") as server:
        together, model = results(server), server.client.get("/model").json()
    alone = []
    for name in ("one", "two"):
        with serve_in_process(f"{checkpoints / name}", "--shape=none") as server:
            alone.append([r["reward"] for r in results(server)])
    for result, a, b in zip(together, *alone, strict=True):
        expected = -0.5 * math.log((math.exp(-a / 0.5) + math.exp(-b / 0.5)) / 2)
        assert result["reward"] == pytest.approx(expected, abs=1e-3)
        assert set(result["heads"]) == {"a/good", "a/kind", "b/good", "b/kind"}
    assert [m["name"] for m in model["pipeline"]["members"]] == ["a", "b"]


def test_a_checkpoint_of_members_is_served_as_an_ensemble_without_a_setting(tmp_path):
    reward_model(tmp_path / "members", heads={"1/score": 0.4, "2/score": 0.6})
    heads = (HeadCalibration("1/score", 0.0, 1.5, 0.7), HeadCalibration("2/score", 1.0, 0.5, 0.4))
    (tmp_path / "members" / "calibration.json").unlink()
    Calibration(0.5, 2.0, heads=heads).save(tmp_path / "members")
    with serve_in_process(f"{tmp_path / 'members'}") as server:
        found, model = results(server), server.client.get("/model").json()
    for result in found:
        z = [result["heads"]["1/score"] / 1.5, (result["heads"]["2/score"] - 1.0) / 0.5]
        assert result["reward"] == pytest.approx(-0.5 * math.log(sum(math.exp(-x / 0.5) for x in z) / 2), abs=1e-5)
    assert [m["name"] for m in model["pipeline"]["members"]] == ["1/score", "2/score"]


def test_the_heads_of_one_model_may_be_members(checkpoints):
    with serve_in_process(f"{checkpoints / 'one'}", "--combine.method=min", "--shape=none") as server:
        for result in results(server):
            z = {"good": result["heads"]["good"] / 1.5, "kind": (result["heads"]["kind"] - 1.0) / 0.5}
            assert result["reward"] == pytest.approx(min(z.values()), abs=1e-6)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--normalize=true"], "rewardserve calibrate"),
        (["--length-debias=0.5"], "length curve"),
        (["--shape=par"], "reference rewards"),
        (["--combine.method=min", "--normalize=true"], "rewardserve calibrate"),
    ],
)
def test_a_server_that_cannot_keep_its_word_does_not_start(tmp_path, flags, words):
    reward_model(tmp_path / "bare")
    for name in ("calibration.json",):
        (tmp_path / "bare" / name).unlink()
    config = json.loads((tmp_path / "bare" / "config.json").read_text())
    config = {k: v for k, v in config.items() if k not in ("mean", "std")}
    (tmp_path / "bare" / "config.json").write_text(json.dumps(config))
    code, _, said = run_command("serve", "--port=0", tmp_path / "bare", *flags)
    assert (code, words in said) == (1, True), said

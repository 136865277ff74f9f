"""The embedded default model as its users meet it: built, served and asked over HTTP."""

from __future__ import annotations

import json
import re
import signal
from dataclasses import asdict

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModel

from rewardserve.model.backends import ModelSpec, load
from rewardserve.model.checkpoint import read
from rewardserve.model.checkpoint.reading import resolve
from rewardserve.model.contract import ScoringContract
from rewardserve.model.default import FOLDER
from rewardserve.model.export import main as export
from rewardserve.model.scorer import TokenBatch
from rewardserve.model.traits import TRAITS, Lexicon
from rewardserve.service.tripwires.io.canaries import SHIPPED
from tests.support.separate_python import scored_in_separate_python
from tests.support.service_server import Server

GOOD_AND_RUDE = [
    (
        "How do I boil an egg?",
        "Put the egg in boiling water for eight minutes, then cool it under cold water so that it peels easily.",
        "Are you serious? Figure it out yourself, idiot.",
    ),
    (
        "My friend is sad. What can I do?",
        "Ask how they feel and listen without trying to fix everything at once. A walk together often helps more than advice.",
        "Who cares. Tell your friend to stop whining, nobody likes a crybaby.",
    ),
    (
        "Can you help me write a short letter to my landlord?",
        "Of course. Tell me what it is about, and I will keep it polite and clear: a greeting, the request, and a date.",
        "No. Write it yourself, you lazy moron.",
    ),
]


@pytest.fixture(scope="module", autouse=True)
def trunk():
    """Built here where it is not in the user's cache: a server in a test has less patience than a user."""
    return read(str(FOLDER))


@pytest.fixture(scope="module")
def server(trunk):
    with Server(fresh=True) as running:
        yield running


@pytest.fixture(scope="module")
def loaded(trunk):
    return load("torch", ModelSpec(device="cpu"))


@pytest.fixture(scope="module")
def last_states():
    """Independent of our network, padding and engines: hidden states at the end of each probe, by transformers' own model."""
    with safe_open(str(FOLDER / "reward_heads.safetensors"), framework="pt") as file:
        base = file.metadata()["base_model_name_or_path"]
    plain = AutoModel.from_pretrained(resolve(base), dtype=torch.float32).eval()
    with torch.no_grad():
        return [plain(torch.tensor([p.ids])).last_hidden_state[0, -1] for p in ScoringContract.load(FOLDER).probes]


def test_the_served_score_is_the_score_that_training_wrote(server):
    contract = ScoringContract.load(FOLDER)
    assert len(contract.probes) == 16
    results = server.score(*(p.sample for p in contract.probes)).json()["results"]
    for result, probe in zip(results, contract.probes, strict=True):
        assert result["error"] is None
        assert result["tokens"] == len(probe.ids)
        assert result["raw"] == pytest.approx(probe.score, abs=probe.tolerance)


def test_the_contracts_scores_are_those_of_a_plain_forward(last_states):
    contract = ScoringContract.load(FOLDER)
    with safe_open(str(FOLDER / "reward_heads.safetensors"), framework="pt") as file:
        head = sum(weight * file.get_tensor(name) for name, weight in contract.heads)
    for probe, state in zip(contract.probes, last_states, strict=True):
        assert probe.score == pytest.approx(float(state @ head), abs=1e-4)


def test_the_default_model_keeps_its_contract(loaded):
    assert loaded.report.holds
    assert loaded.report.origin == "written"
    assert [name for name, _ in loaded.identity.heads] == ["convincing", "harmless"]
    assert loaded.calibration is not None


@pytest.mark.parametrize(("prompt", "good", "rude"), GOOD_AND_RUDE)
def test_a_good_answer_gets_a_higher_reward_than_a_rude_one(server, prompt, good, rude):
    reply = server.score({"prompt": prompt, "response": good}, {"prompt": prompt, "response": rude}).json()
    first, second = reply["results"]
    assert reply["rewards"] == [first["reward"], second["reward"]]
    assert first["reward"] > second["reward"]
    assert set(first["heads"]) == {"convincing", "harmless"}


def test_raw_is_the_weighted_sum_of_the_heads(server):
    weights = dict(ScoringContract.load(FOLDER).heads)
    result = server.score({"prompt": "Why?", "response": "Because it is so."}).json()["results"][0]
    expected = sum(weights[name] * value for name, value in result["heads"].items())
    assert result["raw"] == pytest.approx(expected, abs=1e-5)


def test_normalised_is_raw_minus_mean_over_std(server):
    calibration = read(str(FOLDER)).calibration
    result = server.score({"prompt": "Why?", "response": "Because it is so."}).json()["results"][0]
    assert result["normalized"] == pytest.approx((result["raw"] - calibration.mean) / calibration.std, abs=1e-6)


def test_compare_prefers_the_good_answer_whatever_the_order(server):
    prompt, good, rude = GOOD_AND_RUDE[0]
    body = {
        "comparisons": [{"prompt": prompt, "responses": [good, rude]}, {"prompt": prompt, "responses": [rude, good]}]
    }
    one, two = server.client.post("/compare", json=body).json()["results"]
    assert (one["winner"], two["winner"]) == (0, 1)
    assert one["probabilities"][0][1] == pytest.approx(two["probabilities"][1][0])


def test_the_exported_model_gives_the_served_scores_in_plain_transformers(server, tmp_path):
    """The whole of it in a folder, read by a process that has no code of ours."""
    assert export([str(FOLDER), str(tmp_path / "out")]) == 0
    rows = [
        {
            "prompt": [{"role": "system", "content": "Be kind."}] * (i % 2) + [{"role": "user", "content": prompt}],
            "chosen": [{"role": "assistant", "content": good}],
            "rejected": [{"role": "assistant", "content": rude}],
        }
        for i, (prompt, good, rude) in enumerate(GOOD_AND_RUDE)
    ]
    found = scored_in_separate_python(tmp_path / "out", rows, tmp_path)
    samples = [{"messages": [*row["prompt"], *row[side]]} for row in rows for side in ("chosen", "rejected")]
    for expected, result in zip(found["scores"], server.score(*samples).json()["results"], strict=True):
        assert result["raw"] == pytest.approx(expected, abs=1e-5)


def test_everything_that_training_can_fit_is_fitted():
    calibration = read(str(FOLDER)).calibration
    empty = [name for name, value in asdict(calibration).items() if value in (None, (), "", 0)]
    assert empty == []
    assert [head.name for head in calibration.heads] == ["convincing", "harmless"]
    assert [trait.name for trait in calibration.traits] == [*TRAITS, "distance"]
    assert calibration.lexicon == Lexicon.read().version, (
        "phrases that the server looks for are those that were counted"
    )


@pytest.mark.sweep(2)
@pytest.mark.parametrize(
    "flags",
    [
        ("--length-debias=0.5", "--penalties.repetition=1", "--tripwires.baseline=calibration"),
        ("--combine.method=min",),
        ("--combine.method=and", "--shape=none"),
    ],
)
def test_whatever_needs_a_calibration_is_served_until_sigterm_ends_it_cleanly(trunk, flags):
    prompt, good, rude = GOOD_AND_RUDE[0]
    with Server(*flags) as server:
        reply = server.score({"prompt": prompt, "response": good}, {"prompt": prompt, "response": rude})
        assert all(isinstance(reward, float) for reward in reply.json()["rewards"])
        assert "distance" not in reply.text
        server.signal(signal.SIGTERM)
        assert server.ended() == 0


def test_it_tells_its_server_how_far_a_hidden_state_is_from_those_of_the_calibration(loaded, last_states):
    stored = load_file(FOLDER / "hidden_reference.safetensors")
    expected = [float(((h - stored["mean"]) @ stored["whitening"].T).square().sum().log()) for h in last_states]
    rows = tuple(probe.ids for probe in loaded.contract.probes)
    told = [heads["distance"] for heads in loaded.scorer.score(TokenBatch(rows)).rows]
    assert told == pytest.approx(expected, abs=2e-3)


def test_what_ships_is_small():
    assert (FOLDER / "hidden_reference.safetensors").stat().st_size < 200_000
    assert sum(f.stat().st_size for f in FOLDER.rglob("*") if f.is_file() and f.suffix == ".safetensors") <= 5_000_000


def test_the_card_the_start_the_model_and_the_alert_name_the_canaries_that_fail(server):
    """An independent reading: margins of each pair, scored over HTTP as any two samples."""
    pairs = json.loads(SHIPPED.read_text())
    asked = [{"prompt": pair["prompt"], "response": pair[side]} for pair in pairs for side in ("honest", "exploit")]
    raw = [each["raw"] for each in server.client.post("/score", json={"samples": asked}).json()["results"]]
    expected = [
        pair["name"] for pair, honest, exploit in zip(pairs, raw[::2], raw[1::2], strict=True) if exploit >= honest
    ]
    told = server.client.get("/model").json()["canaries"]
    assert (told["n"], [each["canary"] for each in told["failing"]]) == (len(pairs), expected)
    if expected:
        assert (
            f"{len(expected)} of {len(pairs)} canaries fail, the exploit scores higher: {', '.join(expected)}"
            in server.log
        )
        assert "canaries_failing" in server.log
    card = (FOLDER.parent / "MODEL_CARD.md").read_text()
    named = re.findall(r"scores the exploit\nhigher in .*?;", card, re.DOTALL)
    assert [name for sentence in named for name in re.findall(r"`([^`]+)`", sentence)] == expected

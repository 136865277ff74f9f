"""Values at every token of a response, against the hidden states of one plain forward of transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModel

from rewardserve.model.backends import ModelSpec, load
from rewardserve.model.conversation import Message, Sample
from tests.support.checkpoints import reward_model
from tests.support.service_server import Server, wait_until

PROMPT, RESPONSE = "question 1", "an answer 🥚, then an answer"
HEADS = {"convincing": 1.0, "harmless": 0.5}


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_values_are_the_heads_at_every_hidden_state(tmp_path, architecture):
    folder = tmp_path / "model"
    network = reward_model(folder, architecture, heads=HEADS)
    turns = [Message("user", PROMPT), Message("assistant", RESPONSE)]
    encoded = load("torch", ModelSpec(str(folder), device="cpu", dtype="float32")).encode(Sample(messages=tuple(turns)))
    plain = AutoModel.from_pretrained(tmp_path / "model-sft", dtype=torch.float32).eval()
    with torch.no_grad():
        hidden_TD = plain(torch.tensor([encoded.ids])).last_hidden_state[0]
        expected_TH = hidden_TD[encoded.n_prompt :] @ network.heads.weight.T
    flags = ["--dtype=float32", "--device=cpu", "--capture=share:1", f"--tripwires.state-dir={tmp_path}/state"]
    with Server(str(folder), *flags) as server:
        body = {"run": "a", "samples": [{"messages": [{"role": each.role, "content": each.content} for each in turns]}]}
        reply = server.client.post("/score", json=body).json()["results"][0]
        wait_until(lambda: server.client.get("/review/samples").json()["samples"] != [], 20.0)
        number = server.client.get("/review/samples").json()["samples"][0]["id"]
        tokens = server.client.get(f"/review/samples/{number}/values").json()["tokens"]
        page = server.client.get(f"/console/sample/{number}").text
    found_TH = torch.tensor([[each["heads"][name] for name in HEADS] for each in tokens])
    torch.testing.assert_close(found_TH, expected_TH, atol=1e-5, rtol=1e-5)
    assert sum(weight * tokens[-1]["heads"][name] for name, weight in HEADS.items()) == pytest.approx(
        reply["raw"], abs=1e-5
    )
    assert "".join(each["text"] for each in tokens).startswith(RESPONSE)
    assert page.count('class="up') + page.count('class="down') > 3


def test_a_response_that_is_too_long_has_none(tmp_path):
    with Server("--backend=echo", "echo", "--capture=share:1", f"--tripwires.state-dir={tmp_path}") as server:
        samples = [{"prompt": "p", "response": "x" * 1_500}]
        assert server.client.post("/score", json={"run": "a", "samples": samples}).status_code == 200
        wait_until(lambda: server.client.get("/review/samples").json()["samples"] != [], 20.0)
        number = server.client.get("/review/samples").json()["samples"][0]["id"]
        refused = server.client.get(f"/review/samples/{number}/values")
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "no_values")
        assert "No values" in server.client.get(f"/console/sample/{number}").text

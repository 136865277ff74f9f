"""Real servers over real engines: what they answer, and how they and their engines end."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from rewardserve.model.backends import ModelSpec, load
from rewardserve.model.scorer import TokenBatch
from tests.support.checkpoints import reward_model
from tests.support.machine import needs_vllm
from tests.support.service_server import Server, run_to_end
from tests.support.tiny import ROOMY
from tests.vllm.processes import below, engines, eventually, left_of

pytestmark = [needs_vllm, pytest.mark.timeout(1200), pytest.mark.filterwarnings("default")]

PATIENCE_S = 600.0
FLAGS = ["--backend=vllm", "--vllm.enforce_eager=1"]
SAMPLES = [
    {"prompt": "How do I boil an egg?", "response": "Eight minutes in boiling water, then cool it under cold water."},
    {"prompt": "How do I boil an egg?", "response": "No idea."},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello! How can I help?"}]},
    {"prompt": "My friend is sad. " * 20, "response": "Ask how they feel, and listen."},
]


@pytest.fixture
def tiny(tmp_path):
    reward_model(tmp_path / "rm", "llama", shape=ROOMY)
    return tmp_path / "rm"


@pytest.fixture
def crowd():
    with ThreadPoolExecutor(4) as pool:
        yield pool


def test_the_default_model_is_served_as_on_torch_and_a_server_that_is_told_to_stop_ends_its_engine(crowd):
    expected = load("torch", ModelSpec(device="cpu", engine="padded"))
    with Server(*FLAGS, patience_s=PATIENCE_S) as server:
        results = server.score(*SAMPLES).json()["results"]
        told = server.client.get("/model").json()
        assert server.client.get("/readyz").status_code == server.client.get("/livez").status_code == 200
        processes = below(server.process.pid)
        late = [crowd.submit(server.score, *SAMPLES) for _ in range(3)]
        assert all(call.result().status_code == 200 for call in late)
        server.signal()
        assert server.ended() == 0, server.log
        assert engines_of(processes)
        assert eventually(lambda: not left_of(processes)), "nobody is left, neither engine nor guard"
    assert told["backend"]["name"] == "vllm"
    assert told["contract_report"]["holds"]
    assert told["contract_report"]["max_probe_error"] < 1e-3
    for sample, result in zip(SAMPLES, results, strict=True):
        heads = expected.scorer.score(TokenBatch((expected.encode(sample_of(sample)).ids,))).rows[0]
        assert result["raw"] == pytest.approx(expected.identity.raw(heads), abs=1e-3)
        assert result["heads"] == pytest.approx({name: heads[name] for name in result["heads"]}, abs=1e-3)


def test_a_server_whose_engine_is_killed_answers_with_errors_and_asks_to_be_started_anew(tiny, crowd):
    with Server(*FLAGS, f"{tiny}", "--cache.scores=0", patience_s=PATIENCE_S) as server:
        assert server.score(*SAMPLES).json()["results"][0]["reward"] is not None
        processes = below(server.process.pid)
        core, *_ = engines(server.process.pid)
        os.kill(core, signal.SIGSTOP)  # so that what is asked now is in flight when the engine dies
        asked = crowd.submit(server.score, *SAMPLES)
        late = server.score(*SAMPLES, x_deadline_ms="1000")
        assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
        os.kill(core, signal.SIGKILL)
        for answer in (asked.result(), server.score(*SAMPLES)):
            assert [r["reward"] for r in answer.json()["results"]] == [None] * len(SAMPLES)
            assert {r["error"]["code"] for r in answer.json()["results"]} == {"scorer_failed"}
        assert eventually(lambda: server.client.get("/livez").status_code == 500)
        assert server.client.get("/livez").json()["error"]["code"] == "scorer_dead"
        refused = server.client.get("/readyz")
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "scorer_failing")
        server.signal()
        assert server.ended() == 0, server.log
        assert eventually(lambda: not left_of(processes))
        assert "Eight minutes" not in server.log


def test_a_server_that_is_killed_while_its_engine_starts_leaves_no_process(tiny):
    with Server(*FLAGS, f"{tiny}", wait_for=None, patience_s=PATIENCE_S) as server:
        assert eventually(lambda: engines(server.process.pid), PATIENCE_S)
        processes = below(server.process.pid)
        server.signal(signal.SIGKILL)
        assert server.ended() == -signal.SIGKILL
        assert eventually(lambda: not left_of(processes))


def test_a_server_that_is_stopped_while_its_engine_starts_leaves_no_process(tiny):
    with Server(*FLAGS, f"{tiny}", wait_for=None, patience_s=PATIENCE_S) as server:
        assert eventually(lambda: engines(server.process.pid), PATIENCE_S)
        processes = below(server.process.pid)
        server.signal()
        assert server.ended() == 0
        assert eventually(lambda: not left_of(processes))


def test_a_checkpoint_that_breaks_its_contract_is_refused_in_words(tiny):
    template = tiny / "chat_template.jinja"
    template.write_text(template.read_text() + " ")
    code, output = run_to_end("--port=0", *FLAGS, f"{tiny}", patience_s=PATIENCE_S)
    assert code == 1
    assert "contract clause 'template' is broken" in output
    assert "Traceback" not in output


def engines_of(processes):
    return [pid for pid, name in processes.items() if name.startswith("VLLM::")]


def sample_of(body):
    from rewardserve.model.conversation import Message, Sample

    if "messages" in body:
        return Sample(messages=tuple(Message(**message) for message in body["messages"]))
    return Sample(**body)

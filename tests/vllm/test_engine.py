"""The vllm backend over vLLM itself keeps what the interface promises, and scores as the torch backend does."""

from __future__ import annotations

import os
import signal

import pytest

from rewardserve.model.backends import LoadedModel, ModelSpec, VllmSpec, load
from rewardserve.model.scorer import DISTANCE, ScorerError, TokenBatch
from rewardserve.service.inference.numeric_noise import numeric_noise, synthetic_rows
from tests.support.checkpoints import edit_json, reward_model
from tests.support.machine import needs_vllm
from tests.support.scorer_suite import *  # noqa: F403
from tests.support.scorer_suite import ScorerUnderTest
from tests.support.tiny import ROOMY
from tests.vllm.processes import engines, eventually, left_of

pytestmark = [needs_vllm, pytest.mark.timeout(1200), pytest.mark.filterwarnings("default")]

TOLERANCE = 1e-3
KINDS = {
    # As vLLM reads it, with beginnings kept; and written again for it, one row at a time.
    "qwen2": ({"score": 1.0}, False),
    "llama": ({"good": 1.0, "kind": -0.5}, True),
}


@pytest.fixture(scope="module", params=KINDS)
def served(request, tmp_path_factory):
    """The same checkpoint on vLLM and on torch. Its contract is right, but for one score."""
    heads, deterministic = KINDS[request.param]
    folder = tmp_path_factory.mktemp(request.param) / "rm"
    reward_model(folder, request.param, heads=heads, shape=ROOMY)
    expected = load("torch", ModelSpec(str(folder), device="cpu", engine="padded"))
    spoil_a_probe(folder)
    spec = ModelSpec(
        str(folder),
        contract_mode="warn",
        deterministic=deterministic,
        prefix_cache_bytes=2**20,
        vllm=VllmSpec(enforce_eager=True),
    )
    loaded = load("vllm", spec)
    processes = engines(os.getpid())
    assert processes
    yield loaded, expected
    loaded.scorer.close()
    assert eventually(lambda: not left_of(processes)), "an engine that is closed leaves no process"


def spoil_a_probe(folder):
    import json

    probes = json.loads((folder / "scoring_contract.json").read_text())["probes"]
    probes[3]["score"] += 1.0
    edit_json(folder / "scoring_contract.json", probes=probes)


def plain(loaded: LoadedModel):
    def heads(row):
        (scored,) = loaded.scorer.score(TokenBatch((row,))).rows
        return {name: value for name, value in scored.items() if name != DISTANCE}

    return heads


@pytest.fixture(scope="module")
def scorer_under_test(served):
    loaded, expected = served
    return ScorerUnderTest(loaded.scorer, loaded.identity, plain(expected), range(5, 300), tolerance=TOLERANCE)


def test_every_probe_is_scored_as_in_the_contract_but_the_one_that_was_spoilt(served):
    loaded, _ = served
    assert [breach.clause for breach in loaded.report.breaches] == ["scores"]
    assert loaded.report.max_probe_error == pytest.approx(1.0, abs=TOLERANCE)
    rows = loaded.scorer.score(TokenBatch(tuple(p.ids for p in loaded.contract.probes))).rows
    errors = [abs(loaded.identity.raw(row) - p.score) for row, p in zip(rows, loaded.contract.probes, strict=True)]
    assert sorted(errors)[-2] < 1e-4


def test_what_is_loaded_is_told(served):
    loaded, expected = served
    assert (loaded.identity.backend, loaded.identity.dtype) == ("vllm", "float32")
    assert loaded.identity.engine.startswith("vllm ")
    assert loaded.identity.heads == expected.identity.heads
    assert loaded.identity.n_parameters == expected.identity.n_parameters
    assert loaded.calibration == expected.calibration


def test_a_beginning_that_comes_again_is_not_computed_again_unless_every_row_is_for_itself(served, scorer_under_test):
    loaded, _ = served
    (row,) = scorer_under_test.rows((250,), seed=77)
    first, again = (loaded.scorer.score(TokenBatch((row,))).tokens_computed for _ in range(2))
    assert first == 250
    assert again < 250 if loaded.scorer.shares_prefixes else again == 250


def test_deterministic_means_the_same_bits_in_any_batch(served):
    loaded, _ = served
    noise = numeric_noise(loaded.scorer, loaded.identity, synthetic_rows(loaded.identity.max_tokens))
    assert noise is not None
    assert noise.max < 1e-4
    if not loaded.scorer.shares_prefixes:
        assert noise.max == 0.0


def test_an_engine_whose_worker_is_killed_is_dead_and_says_so(served):
    """The last one: nothing can be asked of this engine any more."""
    loaded, _ = served
    os.kill(engines(os.getpid())[-1], signal.SIGKILL)
    assert eventually(lambda: not loaded.scorer.is_alive)
    with pytest.raises(ScorerError):
        loaded.scorer.score(TokenBatch(((5, 6),)))

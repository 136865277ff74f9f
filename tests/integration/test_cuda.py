"""On a CUDA device: the same scores as on the CPU, within what the dtype allows, and a training step that runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from rewardserve.model.backends import ModelSpec, load
from rewardserve.model.contract import ScoringContract
from rewardserve.model.scorer import DISTANCE, TokenBatch
from tests.support.checkpoints import hidden_reference, reward_model

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, torch sees none"),
]


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2", "mixtral"])
def test_a_contract_written_on_a_cpu_holds_on_a_gpu(tmp_path, architecture):
    reward_model(tmp_path / "rm", architecture)
    loaded = load("torch", ModelSpec(str(tmp_path / "rm"), device="cuda"))
    assert loaded.identity.device == "cuda"
    assert loaded.report.holds
    assert loaded.report.max_probe_error < 1e-4


def test_a_padded_batch_on_a_gpu_scores_as_each_row_alone_on_a_cpu(tmp_path):
    reward_model(tmp_path / "rm")
    loaded = load("torch", ModelSpec(str(tmp_path / "rm"), device="cuda"))
    probes = ScoringContract.load(tmp_path / "rm").probes
    scores = loaded.scorer.score(TokenBatch(tuple(p.ids for p in probes)))
    for row, probe in zip(scores.rows, probes, strict=True):
        assert loaded.identity.raw(row) == pytest.approx(probe.score, abs=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_reduced_precision_on_a_gpu_keeps_the_contracts_tolerance(tmp_path, dtype):
    reward_model(tmp_path / "rm")
    assert load("torch", ModelSpec(str(tmp_path / "rm"), device="cuda", dtype=dtype)).report.holds


@pytest.mark.parametrize(("dtype", "allowed"), [("float32", 1e-2), ("bfloat16", 0.1)])
@pytest.mark.parametrize("engine", ["packed", "padded"])
def test_a_gpu_tells_the_distances_of_hidden_states_that_a_cpu_tells(tmp_path, engine, dtype, allowed):
    reward_model(tmp_path / "rm")
    hidden_reference(tmp_path / "rm")
    rows = TokenBatch(tuple(p.ids for p in ScoringContract.load(tmp_path / "rm").probes))
    spec = ModelSpec(str(tmp_path / "rm"), engine=engine)
    there = load("torch", replace(spec, device="cuda", dtype=dtype)).scorer.score(rows).rows
    here = load("torch", replace(spec, device="cpu", dtype="float32")).scorer.score(rows).rows
    assert [row[DISTANCE] for row in there] == pytest.approx([row[DISTANCE] for row in here], abs=allowed)


def test_a_batch_that_does_not_fit_is_out_of_memory_and_a_smaller_one_is_served(tmp_path):
    from rewardserve.model.scorer import OutOfMemory

    reward_model(tmp_path / "rm")
    loaded = load("torch", ModelSpec(str(tmp_path / "rm"), device="cuda"))
    torch.cuda.set_per_process_memory_fraction(0.001)
    try:
        with pytest.raises(OutOfMemory):
            loaded.scorer.score(TokenBatch(tuple((1,) * 250 for _ in range(20_000))))
        assert loaded.scorer.score(TokenBatch(((1, 2),))).rows
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)

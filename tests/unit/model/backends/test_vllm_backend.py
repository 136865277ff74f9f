"""A checkpoint on vLLM, with a stand-in for its engine: the folder that it loads, and the handling of its results."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from rewardserve.model.backends import ContractBroken, LoadError, ModelSpec, VllmSpec, load, vllm_api
from rewardserve.model.checkpoint import read_backbone, write_heads
from rewardserve.model.contract import ScoringContract
from rewardserve.model.scorer import DISTANCE, TokenBatch
from tests.support.checkpoints import (
    PROBES,
    edit_json,
    hidden_reference,
    language_model,
    openrlhf,
    reward_model,
    sequence_classifier,
    value_head,
)
from tests.support.engines import ReadingEngine

ROWS = ((5, 6, 7, 8), (9,), tuple(range(5, 60)))


@pytest.fixture
def vllm(monkeypatch, tmp_path):
    """vLLM as it would be on a CPU; `engines` are those that were started, `temporary` is where folders are written again."""
    world = SimpleNamespace(engines=[], off_by=0.0, fails=None, temporary=tmp_path / "temporary")
    world.temporary.mkdir()

    async def start(spec, on_process_started):
        if world.fails is not None:
            raise world.fails
        world.engines.append(ReadingEngine(spec, world.off_by))
        return world.engines[-1]

    monkeypatch.setattr(vllm_api, "version", lambda: "0.0")
    monkeypatch.setattr(vllm_api, "device", lambda: "cpu")
    monkeypatch.setattr(vllm_api, "start", start)
    monkeypatch.setattr("tempfile.tempdir", str(world.temporary))
    return world


def several_labels(folder: Path) -> None:
    sequence_classifier(folder, n_labels=3)
    edit_json(folder / "config.json", reward_head_weights=[1.0, 0.5, -1.0])


def a_label_with_a_bias(folder: Path) -> None:
    """vLLM would add it by itself, or not, as its version has it."""
    sequence_classifier(folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "score.bias": torch.tensor([0.7])}, folder / "model.safetensors", metadata={"format": "pt"})


def an_adapter(folder: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    base = language_model(folder.parent / "base")
    lora = LoraConfig(r=4, target_modules=["q_proj"], base_model_name_or_path=str(base))
    model = get_peft_model(AutoModel.from_pretrained(base), lora)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter) * 0.2
    model.save_pretrained(folder)
    metadata = {"reward_heads": json.dumps([{"name": "score", "weight": 1.0}])}
    save_file({"score": torch.randn(32)}, folder / "reward_heads.safetensors", metadata=metadata)


def bare_heads(folder: Path) -> None:
    base = language_model(folder.parent / "base")
    write_heads(
        folder, read_backbone(str(base), head_names=("a", "b"), head_weights=(0.5, 2.0)).network, base=str(base)
    )


CHECKPOINTS = {
    "ours": (reward_model, True),
    "ours of several heads": (lambda folder: reward_model(folder, heads={"a": 0.5, "b": 1.0}), False),
    "ours of one head that counts double": (lambda folder: reward_model(folder, heads={"a": 2.0}), False),
    "a classifier": (sequence_classifier, True),
    "a classifier with a bias": (a_label_with_a_bias, False),
    "several labels": (several_labels, True),
    "OpenRLHF's": (openrlhf, False),
    "a value head of its own": (lambda folder: value_head(folder, separate=True), False),
    "a value head among the weights": (lambda folder: value_head(folder, separate=False), False),
    "an adapter": (an_adapter, False),
    "bare heads": (bare_heads, False),
}


@pytest.mark.sweep(4)
@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_every_kind_of_checkpoint_scores_as_it_does_on_torch(vllm, tmp_path, kind):
    make, as_it_is = CHECKPOINTS[kind]
    make(tmp_path / "rm")
    loaded = load("vllm", ModelSpec(str(tmp_path / "rm")))
    (engine,) = vllm.engines
    expected = load("torch", ModelSpec(str(tmp_path / "rm"), engine="padded"))
    plain = expected.scorer.score(TokenBatch(ROWS)).rows
    for row, heads in zip(loaded.scorer.score(TokenBatch(ROWS)).rows, plain, strict=True):
        assert row == pytest.approx({name: value for name, value in heads.items() if name != DISTANCE}, abs=1e-5)
    assert (engine.spec.folder == tmp_path / "rm") == as_it_is
    assert any("converted" in note for note in loaded.identity.engine_notes) != as_it_is
    assert list(vllm.temporary.glob("rewardserve*")) == [], (
        "the converted folder is removed once the engine has started"
    )
    assert loaded.identity.heads == expected.identity.heads
    assert loaded.identity.n_parameters == expected.identity.n_parameters
    assert loaded.identity.architecture == expected.identity.architecture
    assert loaded.contract == expected.contract
    assert loaded.calibration == expected.calibration
    assert loaded.report.holds
    loaded.scorer.close()
    assert engine.is_dead


def test_the_encoder_is_that_of_the_torch_backend(vllm, tmp_path):
    reward_model(tmp_path / "rm")
    loaded, expected = (load(name, ModelSpec(str(tmp_path / "rm"), max_input_tokens=60)) for name in ("vllm", "torch"))
    encoded = [loaded.encode(p) for p in PROBES]
    assert encoded == [expected.encode(p) for p in PROBES]
    assert any(e.truncated for e in encoded)
    loaded.scorer.close()


def test_probes_that_are_longer_than_what_is_served_fit_into_the_engine(vllm, tmp_path):
    reward_model(tmp_path / "rm")
    loaded = load("vllm", ModelSpec(str(tmp_path / "rm"), max_input_tokens=20))
    longest = max(len(probe.ids) for probe in ScoringContract.load(tmp_path / "rm").probes)
    assert (loaded.scorer.max_tokens, vllm.engines[0].spec.max_tokens) == (20, longest)
    loaded.scorer.close()


def test_a_checkpoint_without_a_contract_is_served_and_says_that_nothing_was_compared(vllm, tmp_path):
    sequence_classifier(tmp_path / "rm")
    loaded = load("vllm", ModelSpec(str(tmp_path / "rm")))
    assert loaded.report.origin == "inferred"
    assert any("not checked" in note for note in loaded.identity.engine_notes)
    loaded.scorer.close()


LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4, "factor": 2.0, "rope_theta": 1e4,
            "original_max_position_embeddings": 128}  # fmt: skip


def test_longrope_is_served_only_on_one_side_of_its_length(vllm, tmp_path):
    # vLLM: use_long_rope = max_model_len > original_max_position_embeddings, for every row.
    sequence_classifier(tmp_path / "rm", "phi3")
    edit_json(tmp_path / "rm" / "config.json", rope_parameters=LONGROPE, original_max_position_embeddings=128)
    with pytest.raises(LoadError, match=r"longer than 128 tokens .* max_input_tokens=128, or backend=torch"):
        load("vllm", ModelSpec(str(tmp_path / "rm")))
    assert vllm.engines == []
    loaded = load("vllm", ModelSpec(str(tmp_path / "rm"), max_input_tokens=128))
    assert loaded.identity.max_tokens == 128
    loaded.scorer.close()


def test_dynamic_ntk_scaling_is_refused_before_an_engine_is_started(vllm, tmp_path):
    sequence_classifier(tmp_path / "rm")
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    edit_json(tmp_path / "rm" / "config.json", rope_parameters=rope)
    with pytest.raises(LoadError, match="dynamic NTK"):
        load("vllm", ModelSpec(str(tmp_path / "rm")))
    assert vllm.engines == []


def test_that_distances_are_not_known_is_said(vllm, tmp_path):
    reward_model(tmp_path / "rm")
    hidden_reference(tmp_path / "rm")
    loaded = load("vllm", ModelSpec(str(tmp_path / "rm")))
    assert any("hidden state" in note for note in loaded.identity.engine_notes)
    assert set(loaded.scorer.score(TokenBatch(ROWS)).rows[0]) == {"score"}
    loaded.scorer.close()


def test_a_contract_that_the_files_break_is_refused_before_an_engine_is_started(vllm, tmp_path):
    reward_model(tmp_path / "rm")
    template = tmp_path / "rm" / "chat_template.jinja"
    template.write_text(template.read_text() + "!")
    with pytest.raises(ContractBroken, match="template"):
        load("vllm", ModelSpec(str(tmp_path / "rm")))
    assert vllm.engines == []
    loaded = load("vllm", ModelSpec(str(tmp_path / "rm"), contract_mode="warn"))
    assert not loaded.report.holds
    loaded.scorer.close()


def test_an_engine_that_gives_other_scores_than_the_contract_is_refused_and_ended(vllm, tmp_path):
    reward_model(tmp_path / "rm")
    vllm.off_by = 0.5
    with pytest.raises(ContractBroken, match="probe"):
        load("vllm", ModelSpec(str(tmp_path / "rm")))
    assert vllm.engines[0].is_dead
    loaded = load("vllm", ModelSpec(str(tmp_path / "rm"), contract_mode="warn"))
    assert loaded.report.max_probe_error == pytest.approx(0.5, abs=1e-4)
    loaded.scorer.close()


def test_what_the_operator_asks_for_reaches_the_engine(vllm, tmp_path):
    reward_model(tmp_path / "rm")
    asked = VllmSpec(
        tensor_parallel=2, pipeline_parallel=3, gpu_memory_utilization=0.5, max_num_seqs=7, enforce_eager=True
    )
    spec = ModelSpec(str(tmp_path / "rm"), dtype="bfloat16", prefix_cache_bytes=0, deterministic=True, vllm=asked)
    loaded = load("vllm", spec)
    given = vllm.engines[0].spec
    assert (given.options, given.dtype, given.keeps_prefixes, given.one_by_one) == (asked, "bfloat16", False, True)
    assert loaded.identity.dtype == "bfloat16"
    assert not loaded.scorer.shares_prefixes
    loaded.scorer.close()


def test_an_engine_that_does_not_start_is_said_with_its_remedies_and_leaves_nothing(vllm, tmp_path):
    bare_heads(tmp_path / "rm")
    vllm.fails = RuntimeError("Engine core initialization failed.\nmore")
    with pytest.raises(LoadError, match=r"initialization failed\. \(.*vllm\.gpu_memory_utilization"):
        load("vllm", ModelSpec(str(tmp_path / "rm")))
    assert list(vllm.temporary.glob("rewardserve*")) == []


def test_a_full_disk_is_said_with_its_remedy(vllm, tmp_path, monkeypatch):
    bare_heads(tmp_path / "rm")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rewardserve.model.backends.vllm_backend.write_labels", full)
    with pytest.raises(LoadError, match=r"No space left on device\. Set TMPDIR"):
        load("vllm", ModelSpec(str(tmp_path / "rm")))


def test_another_device_than_the_one_that_vllm_was_built_for_is_refused(vllm, tmp_path):
    with pytest.raises(LoadError, match="CUDA_VISIBLE_DEVICES"):
        load("vllm", ModelSpec(str(tmp_path), device="cuda:1"))


def test_without_vllm_the_extra_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(LoadError, match=r"rewardserve\[vllm\]"):
        load("vllm", ModelSpec(str(tmp_path)))


def arguments(monkeypatch, **changes):
    """What vLLM is asked for, where there is none: its only class that is needed for that says what it was given."""
    config = ModuleType("vllm.config")
    config.PoolerConfig = dict
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.setitem(sys.modules, "vllm.config", config)
    spec = {"folder": Path("/rm"), "dtype": "float32", "max_tokens": 64, "keeps_prefixes": True, "one_by_one": False,
            "options": VllmSpec()}  # fmt: skip
    return vllm_api._arguments(vllm_api.EngineSpec(**spec | changes))


def test_vllm_is_asked_for_raw_scores_at_the_last_token_and_is_left_its_own_defaults(monkeypatch):
    asked = arguments(monkeypatch)
    assert (asked["runner"], asked["convert"], asked["pooler_config"]) == (
        "pooling", "classify", {"pooling_type": "LAST", "use_activation": False},
    )  # fmt: skip
    assert asked["enable_prefix_caching"]
    assert not {"gpu_memory_utilization", "max_num_seqs", "enable_chunked_prefill"} & set(asked)


def test_deterministic_is_one_row_at_a_time_in_one_piece_and_nothing_kept(monkeypatch):
    asked = arguments(monkeypatch, one_by_one=True, options=VllmSpec(max_num_seqs=16))
    assert (asked["max_num_seqs"], asked["enable_chunked_prefill"], asked["max_num_batched_tokens"]) == (1, False, 64)
    assert not asked["enable_prefix_caching"]

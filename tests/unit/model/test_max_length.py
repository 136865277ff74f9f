"""The longest row of a model and the width of its hidden state, against the computation of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from rewardserve.model.backends import LoadedModel, LoadError, ModelSpec, load
from rewardserve.model.backends.serving import apply_limits
from rewardserve.model.checkpoint import read
from rewardserve.model.checkpoint.max_length import DEFAULT_MAX_TOKENS, max_row_tokens, position_table_size
from rewardserve.model.conversation import Sample, SampleError
from rewardserve.model.network import RewardNetwork, hidden_width
from rewardserve.model.scorer import TokenBatch
from tests.support.tiny import randomize, tiny_tokenizer

VOCAB = 320
_COMMON = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": VOCAB}
_WIDE = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCAB}
_OPT = {**_COMMON, "ffn_dim": 64, "max_position_embeddings": 96, "pad_token_id": 1}
MODELS: dict[str, tuple[str, dict[str, Any], int | None, int | None]] = {
    # name: (architecture, configuration, longest row, positions of its table)
    "llama": ("llama", {**_COMMON, "intermediate_size": 64, "max_position_embeddings": 96}, 96, None),
    "gpt2": ("gpt2", {**_WIDE, "n_positions": 96}, 96, 96),
    "openai-gpt": ("openai-gpt", {**_WIDE, "n_positions": 96}, 96, 96),
    "gpt_neo": ("gpt_neo", {"hidden_size": 32, "num_layers": 2, "num_heads": 4, "vocab_size": VOCAB,
                            "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 96}, 96, 96),
    "gpt_bigcode": ("gpt_bigcode", {**_WIDE, "n_positions": 96}, 96, 96),
    "gptj": ("gptj", {**_WIDE, "n_positions": 96, "rotary_dim": 4}, 96, None),
    "ctrl": ("ctrl", {**_WIDE, "n_positions": 96, "dff": 64}, 96, None),
    "mpt": ("mpt", {"d_model": 32, "n_layers": 2, "n_heads": 4, "vocab_size": VOCAB, "max_seq_len": 96}, 96, None),
    "opt": ("opt", _OPT, 96, 96),
    "opt projected": ("opt", {**_OPT, "word_embed_proj_dim": 16}, 96, 96),
    "biogpt": ("biogpt", {**_COMMON, "intermediate_size": 64, "max_position_embeddings": 96}, 96, 96),
    "rwkv": ("rwkv", {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": VOCAB, "context_length": 96}, 96, None),
    "falcon alibi": ("falcon", {**_COMMON, "alibi": True, "max_position_embeddings": 96}, 96, None),
    "roberta": ("roberta", {**_COMMON, "intermediate_size": 64, "max_position_embeddings": 96, "pad_token_id": 1,
                            "is_decoder": True}, 94, 94),
    "mamba": ("mamba", {"hidden_size": 32, "num_hidden_layers": 2, "vocab_size": VOCAB}, None, None),
    "bloom": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCAB}, None, None),
    "bloom as published": ("bloom", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCAB, "seq_length": 96},
                           96, None),
}  # fmt: skip


def backbone_of(name: str) -> Any:
    architecture, shape, *_ = MODELS[name]
    backbone = AutoModel.from_config(AutoConfig.for_model(architecture, **shape)).eval()
    randomize(backbone)
    return backbone


@pytest.mark.parametrize("name", MODELS)
def test_the_longest_row_is_known_by_every_name_and_by_the_table(name: str):
    *_, longest, table = MODELS[name]
    backbone = backbone_of(name)
    assert (max_row_tokens(backbone), position_table_size(backbone)) == (longest, table)


@pytest.mark.parametrize("name", MODELS)
def test_a_row_of_that_length_has_a_finite_hidden_state(name: str):
    longest = MODELS[name][2] or 200
    ids = torch.randint(5, VOCAB, (1, longest))
    with torch.no_grad():
        assert bool(backbone_of(name)(input_ids=ids).last_hidden_state.isfinite().all())


@pytest.mark.parametrize("name", MODELS)
def test_the_width_of_the_hidden_state_is_that_of_a_forward_also_without_weights(name: str):
    architecture, shape, *_ = MODELS[name]
    with torch.device("meta"):
        outline = AutoModel.from_config(AutoConfig.for_model(architecture, **shape))
    with torch.no_grad():
        width = backbone_of(name)(input_ids=torch.tensor([[5, 6, 7]])).last_hidden_state.shape[-1]
    assert hidden_width(outline) == width == (16 if name == "opt projected" else 32)


def classifier(folder: Path, name: str) -> Any:
    """A sequence classifier with one label, saved by transformers."""
    fast = tiny_tokenizer()
    architecture, shape, *_ = MODELS[name]
    tokens = {"pad_token_id": fast.pad_token_id, "eos_token_id": fast.eos_token_id, "vocab_size": len(fast)}
    config = AutoConfig.for_model(architecture, **{**shape, **tokens, "num_labels": 1})
    model = AutoModelForSequenceClassification.from_config(config).eval()
    randomize(model)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return model


def served(folder: Path, **spec: Any) -> LoadedModel:
    return load("torch", ModelSpec(str(folder), device="cpu", **spec))


@pytest.mark.parametrize("name", ["mpt", "gpt2", "opt", "opt projected", "gptj", "biogpt", "bloom as published"])
def test_a_row_beyond_the_longest_is_too_long_and_the_longest_scores_right(tmp_path, name: str):
    model, longest = classifier(tmp_path, name), MODELS[name][2]
    loaded = served(tmp_path)
    assert loaded.identity.max_tokens == longest
    with pytest.raises(SampleError) as refused:
        loaded.encode(Sample(prompt="question", response="word " * 120))
    assert refused.value.code == "input_too_long"
    rows = [tuple(torch.randint(5, VOCAB, (n,)).tolist()) for n in (longest, 1, 30)]
    done = loaded.scorer.score(TokenBatch(tuple(rows))).rows
    with torch.no_grad():
        hidden = [model.base_model(input_ids=torch.tensor([row])).last_hidden_state[0, -1] for row in rows]
        expected = [float(model.score(each)) for each in hidden]
    assert [heads["score"] for heads in done] == pytest.approx(expected, abs=2e-5)


def test_a_head_that_is_as_wide_as_the_projection_is_read_and_another_is_refused(tmp_path):
    classifier(tmp_path, "opt projected")
    network = read(str(tmp_path)).network
    assert network.heads.weight.shape == (1, 16)
    assert RewardNetwork.create(backbone_of("opt projected")).heads.weight.shape == (1, 16)


def test_a_model_without_a_longest_row_says_so_and_the_operator_may_change_it(tmp_path):
    classifier(tmp_path, "bloom")
    loaded = served(tmp_path)
    assert loaded.identity.max_tokens == DEFAULT_MAX_TOKENS
    assert any("has no maximum length" in note for note in loaded.identity.engine_notes)
    assert served(tmp_path, max_input_tokens=6000).identity.max_tokens == 6000


def test_the_operator_cannot_go_beyond_a_longest_row_that_is_named(tmp_path):
    classifier(tmp_path, "mpt")
    with pytest.raises(LoadError, match="max_input_tokens=97 is more than this checkpoint can read"):
        apply_limits(read(str(tmp_path)), ModelSpec(max_input_tokens=97))

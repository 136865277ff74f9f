"""Training pads its batches, so a model that padding changes is refused before a pair is read."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoConfig, AutoModelForCausalLM

from rewardserve.training import workflow
from rewardserve.training.errors import ModelUnusable
from rewardserve.training.settings import recipe
from tests.support.planted_pairs import language_model, tokenizer
from tests.support.tiny import randomize


def begin(model: Path, folder: Path):
    source = {"path": str(folder / "pairs.jsonl"), "name": "planted"}
    raw = {"model": {"path": str(model)}, "data": {"sources": [source]}, "output": {"folder": str(folder / "out")}}
    return workflow.load_start(recipe.parse(raw))


def test_a_model_that_padding_changes_is_refused_with_the_difference(tmp_path):
    words = tokenizer()
    config = AutoConfig.for_model("rwkv", vocab_size=len(words), hidden_size=32, attention_hidden_size=32,
                                  num_hidden_layers=2, context_length=256)  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    randomize(model)
    model.save_pretrained(tmp_path / "rwkv")
    words.save_pretrained(tmp_path / "rwkv")
    with pytest.raises(ModelUnusable, match=r"RwkvModel cannot be trained here: .*\(scores differ by"):
        begin(tmp_path / "rwkv", tmp_path)


def test_a_model_that_padding_does_not_change_begins(tmp_path):
    network = begin(language_model(tmp_path / "sft"), tmp_path).network
    assert network.heads.weight.shape == (1, 32)

"""Adapters whose trainer has added tokens: PEFT saves the larger table of embeddings with them. The reference is PEFT's class."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForSequenceClassification

from rewardserve.model.backends import ModelSpec, load
from rewardserve.model.conversation import Sample
from rewardserve.model.export import main as export
from rewardserve.model.scorer import TokenBatch
from tests.support.checkpoints import language_model
from tests.support.tiny import CHATML, tiny_tokenizer

TALKS = (("What is two plus two?", "Four, of course."), ("Hi", "no"))
WAYS = {
    "the table is saved whole": {"modules_to_save": ["score", "embed_tokens"]},
    "PEFT saves it by itself": {},
    "with a low-rank change": {"target_modules": ["q_proj", "embed_tokens"]},
}


def adapter(folder: Path, *, is_tied: bool, **lora: object) -> list[float]:
    """An adapter over a language model with fewer tokens; its scores by PEFT's class."""
    base = language_model(folder.parent / "base", shape={"tie_word_embeddings": is_tied})
    tokenizer = tiny_tokenizer(CHATML.replace("<|im_start|>assistant", "<new><|im_start|>assistant"))
    tokenizer.add_tokens(["<new>", "<other>"], special_tokens=True)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=tokenizer.pad_token_id)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    config = LoraConfig(task_type="SEQ_CLS", r=4, **{"target_modules": ["q_proj", "down_proj"], **lora})
    config.base_model_name_or_path = str(base)
    tuned = get_peft_model(model, config).eval()
    generator = torch.Generator().manual_seed(5)
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data += torch.randn(parameter.shape, generator=generator) * 0.15
    tuned.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    scores = []
    for prompt, response in TALKS:
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]
        row = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
        with torch.no_grad():
            scores.append(float(tuned(input_ids=torch.tensor([row])).logits[0, 0]))
    return scores


def served(folder: Path) -> list[float]:
    loaded = load("torch", ModelSpec(str(folder), matmul_precision="highest"))
    rows = tuple(loaded.encode(Sample(prompt=p, response=r)).ids for p, r in TALKS)
    return [loaded.identity.raw(heads) for heads in loaded.scorer.score(TokenBatch(rows)).rows]


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers`")
@pytest.mark.filterwarnings("ignore:Model with `tie_word_embeddings=True`")
@pytest.mark.parametrize("is_tied", [False, True])
@pytest.mark.parametrize("way", WAYS)
def test_an_adapter_brings_the_embeddings_of_its_new_tokens(tmp_path, way, is_tied):
    trained = adapter(tmp_path / "adapter", is_tied=is_tied, **WAYS[way])
    assert served(tmp_path / "adapter") == pytest.approx(trained, abs=1e-5)
    if way == "the table is saved whole":
        assert export([str(tmp_path / "adapter"), str(tmp_path / "out")]) == 0
        assert served(tmp_path / "out") == pytest.approx(trained, abs=1e-5)

"""Models that are not causal: tokens after the scored one cannot be left out of a row."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rewardserve.model.backends import LoadError, ModelSpec, load
from rewardserve.model.checkpoint import CheckpointError, ReadOptions, read
from rewardserve.model.conversation import Message, Sample
from rewardserve.model.export import main as export
from rewardserve.model.network import looks_ahead
from tests.support.checkpoints import edit_json, sequence_classifier
from tests.support.tiny import ARCHITECTURES, CHATML, tiny_tokenizer

END, PAD = 2, 4
CHAT = (Message("user", "What is two plus two?"), Message("assistant", "Four, of course."))
BOTH_WAYS = {"use_bidirectional_attention": True}


def classifier(folder: Path, *, pad: int, architecture: str = "gemma3_text", **shape):
    sequence_classifier(folder, architecture, shape=shape)
    tiny_tokenizer(CHATML.replace("<|im_end|>\n{% endfor", "<|im_end|>{% endfor")).save_pretrained(folder)
    edit_json(folder / "config.json", pad_token_id=pad)
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


def by_class(model, folder) -> float:
    turns = [{"role": m.role, "content": m.content} for m in CHAT]
    ids = read(str(folder)).tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([list(ids)])).logits[0, 0])


@pytest.mark.parametrize("pad", [END, 5], ids=["the end token", "ordinary text"])
def test_a_model_that_reads_a_skipped_token_is_refused(tmp_path, pad):
    classifier(tmp_path / "rm", pad=pad, **BOTH_WAYS)
    with pytest.raises(LoadError, match=f"not causal.*id {pad} is the pad token"):
        load("torch", ModelSpec(str(tmp_path / "rm")))
    with pytest.raises(CheckpointError, match="not causal"):
        read(str(tmp_path / "rm"))
    assert export([str(tmp_path / "rm"), str(tmp_path / "out")]) == 1


@pytest.mark.parametrize("is_causal", [True, False])
def test_whether_a_model_looks_ahead_is_measured_and_not_read_from_its_configuration(tmp_path, is_causal):
    """transformers reads `is_causal` for some architectures, and ignores it for others."""
    model = classifier(tmp_path, pad=PAD, architecture="qwen2", is_causal=is_causal)
    ids = torch.tensor([[7, 8, 9, 10, 11, 12]])
    with torch.no_grad():
        short, whole = (model.model(input_ids=row).last_hidden_state[0, 3] for row in (ids[:, :4], ids))
    assert looks_ahead(read(str(tmp_path)).network) == (not torch.allclose(short, whole, atol=1e-5))


def test_such_a_model_is_served_where_no_row_has_the_pad_token(tmp_path):
    from rewardserve.model.scorer import TokenBatch

    model = classifier(tmp_path, pad=PAD, **BOTH_WAYS)
    loaded = load("torch", ModelSpec(str(tmp_path), matmul_precision="highest"))
    scored = loaded.scorer.score(TokenBatch((loaded.encode(Sample(messages=CHAT)).ids,))).rows[0]
    assert loaded.identity.raw(scored) == pytest.approx(by_class(model, tmp_path), abs=1e-5)


@pytest.mark.sweep(8)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_no_causal_model_is_taken_for_one(tmp_path, architecture, dtype):
    sequence_classifier(tmp_path, architecture)
    assert not looks_ahead(read(str(tmp_path), ReadOptions(dtype=dtype)).network)

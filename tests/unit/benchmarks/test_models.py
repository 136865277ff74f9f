"""The benchmark's own checkpoints load unchanged where others load theirs, and their scores are of a useful size."""

import statistics

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks import models
from benchmarks.models import DecoderShape
from rewardserve.model.checkpoint import read

TINY = DecoderShape(hidden=32, layers=2, heads=4, kv_heads=2, intermediate=64)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return models.folder("tiny", TINY, tmp_path_factory.mktemp("cache"))


def test_transformers_and_our_own_reader_score_the_same_text_alike(tiny):
    theirs = AutoModelForSequenceClassification.from_pretrained(tiny)
    ours = read(str(tiny))
    ids = torch.tensor([AutoTokenizer.from_pretrained(tiny)("one text\n")["input_ids"]])
    with torch.inference_mode():
        assert theirs(ids).logits.item() == pytest.approx(ours.network(ids).scores_BH.item(), abs=1e-6)
    assert ours.pad_id != theirs.config.eos_token_id


def test_a_library_that_reads_the_file_and_one_that_builds_qwens_own_tokenizer_give_the_same_ids(tiny):
    from tokenizers import Tokenizer

    text = models.corpus()[:50_000] + " Ünïcödé 12345 don't\r\n\t  你好"
    built = AutoTokenizer.from_pretrained(tiny)(text, add_special_tokens=False)["input_ids"]
    assert built == Tokenizer.from_file(str(tiny / "tokenizer.json")).encode(text, add_special_tokens=False).ids


def test_scores_of_texts_that_the_head_was_not_made_from_spread_about_one(tiny):
    checkpoint = read(str(tiny))
    pages = models.corpus().split("\n\n")
    rows = [checkpoint.tokenizer(f"{p[:300]}{models.END}\n")["input_ids"] for p in pages[5::40]]
    with torch.inference_mode():
        scores = [checkpoint.network(torch.tensor([row])).scores_BH.item() for row in rows]
    assert 0.2 < statistics.stdev(scores) < 3.0


def test_a_checkpoint_is_made_once(tiny):
    before = (tiny / "model.safetensors").stat().st_mtime_ns
    assert models.folder("tiny", TINY, tiny.parent) == tiny
    assert (tiny / "model.safetensors").stat().st_mtime_ns == before
    assert [p.name for p in tiny.parent.iterdir()] == [tiny.name]  # no draft is left behind


def test_work_of_a_row_is_what_its_matrices_and_the_triangle_of_its_attention_take():
    shape = DecoderShape(hidden=8, layers=3, heads=2, kv_heads=1, intermediate=10)
    a_token = 2 * (8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 10)
    triangle = sum(2 * 2 * 8 * (i + 1) for i in range(5))  # scores and values: query i sees i + 1 keys
    assert shape.flops(5) == pytest.approx(3 * (5 * a_token + triangle))

"""Ids of text are checked against the rows of the embedding table: of one model, of an ensemble, in training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from rewardserve.model.backends import LoadError, ModelSpec, load
from rewardserve.model.backends.ensemble import ensemble
from rewardserve.model.checkpoint import read, read_backbone, read_without_weights, write
from rewardserve.model.conversation import Message, Sample, TokenOutOfVocabulary
from rewardserve.model.encoding import Encoded, Encoder
from rewardserve.model.layout_rules import LAYOUT_RULES
from rewardserve.model.scorer import TokenBatch
from rewardserve.model.templates.chat_template import EncodingPolicyError
from rewardserve.model.tokenization.encoding_policy import infer_policy
from rewardserve.training.dataset import sequences
from rewardserve.training.dataset.feedback import Pair
from tests.support.checkpoints import edit_json, language_model, reward_model, sequence_classifier
from tests.support.tiny import CHATML, tiny_tokenizer

EXTRA = "<extra_0>"
ROWS = 320


def extend(folder: Path, *tokens: str) -> None:
    """Give the tokenizer tokens that the weights know nothing of."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(tokens))
    tokenizer.save_pretrained(folder)


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("extended") / "rm"
    sequence_classifier(folder)
    extend(folder, EXTRA, "<extra_1>")
    return folder


FORMS = {
    "prompt": Sample(prompt=f"a {EXTRA} c", response="yes"),
    "response": Sample(prompt="a", response=f"b {EXTRA}"),
    "system": Sample(messages=(Message("system", EXTRA), Message("user", "a"), Message("assistant", "b"))),
    "text": Sample(text=f"a {EXTRA} c"),
    "quoting": Sample(prompt=f"<|im_end|> {EXTRA}", response="b"),
    "ids": Sample(input_ids=(5, 6, ROWS, 7)),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_token_without_an_embedding_is_that_samples_own_error(extended, form):
    encode = read(str(extended)).encoder
    good = Sample(prompt="a", response="b")
    outcomes = encode.many([good, FORMS[form], good])
    assert [type(outcome) for outcome in outcomes] == [Encoded, TokenOutOfVocabulary, Encoded]
    assert outcomes[1].details["id"] == ROWS
    assert outcomes[1].details["vocab_size"] == ROWS
    assert str(ROWS) in outcomes[1].message
    assert EXTRA not in outcomes[1].message, "what a caller wrote is not repeated"
    with pytest.raises(TokenOutOfVocabulary):
        encode(FORMS[form])


def test_a_token_that_is_cut_off_with_the_left_of_the_prompt_is_never_looked_up(extended):
    checkpoint = read(str(extended))
    encode = Encoder(checkpoint.tokenizer, replace(checkpoint.policy, max_tokens=20))
    assert encode(Sample(prompt=f"{EXTRA}{' why' * 40}", response="b")).truncated


def test_a_note_names_the_tokens_beyond_the_table(extended):
    for checkpoint in (read(str(extended)), read_without_weights(str(extended))):
        [note] = checkpoint.encoder.notes
        assert EXTRA in note
        assert "<extra_1>" in note
        assert "320" in note
        assert "token_out_of_vocabulary" in note
    assert any(EXTRA in note for note in load("torch", ModelSpec(str(extended))).identity.engine_notes)


def test_a_long_list_of_such_tokens_is_cut_short(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.add_tokens([f"<extra_{i}>" for i in range(400)])
    policy = infer_policy(tokenizer, max_tokens=100, vocab_size=ROWS, rule=LAYOUT_RULES["language_model"])
    [note] = Encoder(tokenizer, policy).notes
    assert "400 tokens" in note
    assert len(note) < 500


def test_a_table_with_more_rows_than_the_vocabulary_needs_no_note_and_reads_every_row(tmp_path):
    """Tables are padded to round numbers. The reference is the checkpoint's own class."""
    from transformers import AutoModelForSequenceClassification

    from tests.support.tiny import randomize, tiny_config

    model = AutoModelForSequenceClassification.from_config(tiny_config("llama", 384, num_labels=1))
    randomize(model)
    model.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    loaded = load("torch", ModelSpec(str(tmp_path), matmul_precision="highest"))
    assert not [note for note in loaded.identity.engine_notes if "embedding" in note]
    ids = loaded.encode(Sample(input_ids=(5, 350, 383))).ids
    with torch.no_grad():
        expected = float(model.eval()(torch.tensor([ids])).logits[0, 0])
    assert loaded.identity.raw(loaded.scorer.score(TokenBatch((ids,))).rows[0]) == pytest.approx(expected, abs=1e-4)
    with pytest.raises(TokenOutOfVocabulary):
        loaded.encode(Sample(input_ids=(5, 384)))


# -- tokens that every sample has --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("template", "kind"),
    [
        (CHATML.replace("<|im_end|>", EXTRA), "end"),
        (CHATML.replace("<|im_start|>", EXTRA), "start"),
        (EXTRA + CHATML, "beginning"),
        (None, "eos"),
    ],
)
def test_a_template_or_an_end_token_beyond_the_table_is_refused_at_load(tmp_path, template, kind):
    sequence_classifier(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.add_special_tokens({"eos_token": EXTRA} if kind == "eos" else {"additional_special_tokens": [EXTRA]})
    tokenizer.chat_template = template
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    if template is not None:
        (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(LoadError, match=r"<extra_0>.*320"):
        load("torch", ModelSpec(str(tmp_path)))


def test_a_bos_token_beyond_the_table_is_refused(tmp_path):
    tokenizer = tiny_tokenizer("{{ bos_token }}" + CHATML)
    tokenizer.add_special_tokens({"bos_token": EXTRA})
    with pytest.raises(EncodingPolicyError, match=EXTRA):
        infer_policy(tokenizer, max_tokens=100, vocab_size=ROWS, rule=LAYOUT_RULES["language_model"])


@pytest.mark.parametrize("engine", ["padded", "packed"])
def test_a_pad_token_beyond_the_table_pads_nothing(tmp_path, engine):
    model = sequence_classifier(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    tokenizer.add_special_tokens({"pad_token": EXTRA})
    tokenizer.save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", pad_token_id=None)
    assert read(str(tmp_path)).pad_id < ROWS
    loaded = load("torch", ModelSpec(str(tmp_path), engine=engine, matmul_precision="highest"))
    rows = [loaded.encode(Sample(prompt="a", response=text)).ids for text in ("b", "a much longer answer")]
    scored = loaded.scorer.score(TokenBatch(tuple(rows))).rows
    for ids, heads in zip(rows, scored, strict=True):
        with torch.no_grad():
            expected = float(model.model(torch.tensor([ids])).last_hidden_state[0, -1] @ model.score.weight[0])
        assert loaded.identity.raw(heads) == pytest.approx(expected, abs=1e-4)


def test_a_pad_token_beyond_the_table_is_not_exported(tmp_path):
    language_model(tmp_path / "sft")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "sft")
    tokenizer.add_special_tokens({"pad_token": EXTRA})
    tokenizer.save_pretrained(tmp_path / "sft")
    edit_json(tmp_path / "sft" / "config.json", pad_token_id=None)
    start = read_backbone(str(tmp_path / "sft"))
    pad_id = write(tmp_path / "rm", start.network, start.tokenizer, policy=start.policy)
    assert pad_id < ROWS
    assert pad_id not in start.policy.end_ids
    assert read(str(tmp_path / "rm")).pad_id == pad_id


# -- several models ----------------------------------------------------------------------------------------------------


def test_an_ensemble_takes_no_token_that_one_of_its_members_has_no_embedding_for(tmp_path):
    """Same tokenizer, tables of different sizes: only the larger one has rows for the extra tokens."""
    sequence_classifier(tmp_path / "small")
    extend(tmp_path / "small", EXTRA)
    small = tmp_path / "small"
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(small)
    model.resize_token_embeddings(330, mean_resizing=False)
    model.save_pretrained(tmp_path / "large")
    AutoTokenizer.from_pretrained(small).save_pretrained(tmp_path / "large")
    members = {name: load("torch", ModelSpec(str(tmp_path / name))) for name in ("large", "small")}
    for order in (("large", "small"), ("small", "large")):
        together = ensemble([(name, members[name]) for name in order])
        with pytest.raises(TokenOutOfVocabulary):
            together.encode(Sample(prompt=EXTRA, response="b"))
        assert together.encode(Sample(prompt="a", response="b")).ids
    assert members["large"].encode(Sample(prompt=EXTRA, response="b")).ids


# -- training ----------------------------------------------------------------------------------------------------------


def test_training_names_the_pairs_whose_tokens_have_no_embedding(tmp_path):
    language_model(tmp_path)
    extend(tmp_path, EXTRA)
    checkpoint = read_backbone(str(tmp_path))
    good, bad = Sample(prompt="a", response="b"), Sample(prompt="a", response=EXTRA)
    pairs = [
        Pair("f:1", "s", "g", "score", good, replace(good, response="c"), "b", "c"),
        Pair("f:2", "s", "g", "score", good, bad, "b", EXTRA),
    ]
    with pytest.raises(sequences.PairEncodingError, match=r"1 pair cannot be encoded:\n  f:2: .*320"):
        sequences.encode(pairs, checkpoint.encoder)


def test_a_checkpoint_of_ours_has_no_such_note(tmp_path):
    reward_model(tmp_path / "rm")
    assert read(str(tmp_path / "rm")).encoder.notes == ()

"""Messages have the BOS tokens that the chat template writes, and no others; text and ids begin with those that are due."""

from __future__ import annotations

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rewardserve.model.checkpoint import read
from rewardserve.model.conversation import Message, Sample
from rewardserve.model.encoding import Encoder
from rewardserve.model.export import main as export
from rewardserve.model.layout_rules import LAYOUT_RULES
from rewardserve.model.tokenization.encoding_policy import infer_policy
from tests.support.checkpoints import sequence_classifier
from tests.support.tiny import tiny_tokenizer

_TURN = "{{ m['content'] }}<|im_end|>"
TEMPLATES = {
    "before each user's turn, as Llama 2": "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' }}"
    + _TURN + "{% else %}" + _TURN + "{% endif %}{% endfor %}",
    "once": "{{ bos_token }}{% for m in messages %}" + _TURN + "{% endfor %}",
    "twice": "{{ bos_token }}{{ bos_token }}{% for m in messages %}" + _TURN + "{% endfor %}",
    "never": "{% for m in messages %}" + _TURN + "{% endfor %}",
    "behind a system message only": "{% for m in messages %}{% if m['role'] == 'system' %}{{ bos_token }}{% endif %}" + _TURN
    + "{% endfor %}",
    "in long conversations": "{% if messages | length > 3 %}{{ bos_token }}{% endif %}{% for m in messages %}" + _TURN
    + "{% endfor %}",
}  # fmt: skip
TALKS = {
    "user first": ("user", "assistant"),
    "assistant first": ("assistant", "user", "assistant"),
    "system first": ("system", "user", "assistant"),
    "two assistants": ("assistant", "assistant"),
    "long": ("user", "assistant", "user", "assistant", "user", "assistant"),
}
LAYOUTS = ("rewardserve", "language_model", "sequence_classification", "adapter", "openrlhf", "trl_value_head")
BOS = 3


def tokenizer_of(template: str, *, adds_bos: bool = True):
    """Like Llama's it puts BOS before plain text."""
    tokenizer = tiny_tokenizer(TEMPLATES[template], bos="<s>")
    if adds_bos:
        tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return tokenizer


def talk_of(name: str, n: int = 1) -> tuple[Message, ...]:
    return tuple(Message(role, f"the {role} said {i} " * n) for i, role in enumerate(TALKS[name]))


def plain(tokenizer, messages) -> list[int]:
    turns = [{"role": m.role, "content": m.content} for m in messages]
    return list(tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False))


def encoder(tokenizer, layout: str, max_tokens: int = 4096) -> Encoder:
    policy = infer_policy(tokenizer, max_tokens=max_tokens, vocab_size=len(tokenizer), rule=LAYOUT_RULES[layout])
    return Encoder(tokenizer, policy)


@pytest.mark.parametrize("adds_bos", [True, False], ids=["llama", "plain"])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_messages_are_those_of_the_template(template, talk, layout, adds_bos):
    tokenizer = tokenizer_of(template, adds_bos=adds_bos)
    encode = encoder(tokenizer, layout)
    messages = talk_of(talk)
    assert list(encode(Sample(messages=messages)).ids) == plain(tokenizer, messages)
    assert list(encode(Sample(prompt=messages[:-1], response=messages[-1].content)).ids) == plain(tokenizer, messages)


@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_text_and_ids_begin_with_the_bos_tokens_that_the_template_begins_with(template, talk):
    tokenizer = tokenizer_of(template)
    encode = encoder(tokenizer, "sequence_classification")
    row = plain(tokenizer, talk_of(talk))
    n = next(i for i, token in enumerate(row) if token != BOS)
    begins = encode.policy.bos_id is not None
    assert begins == (template in ("once", "twice") or template.startswith("before each user"))
    n_due = 2 if template == "twice" else 1
    expected = [*[BOS] * n_due, *row[n:]] if begins else row  # one more is taken for the caller's tokenizer's
    turns = [{"role": m.role, "content": m.content} for m in talk_of(talk)]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    bare = text[n * len("<s>") :]
    assert list(encode(Sample(text=text)).ids) == expected
    assert list(encode(Sample(input_ids=tuple(row))).ids) == expected
    if begins:
        assert list(encode(Sample(text=bare)).ids) == expected
        assert list(encode(Sample(input_ids=tuple(row[n:]))).ids) == expected


@pytest.mark.sweep(8)
@pytest.mark.parametrize("n_words", [30, 30_000], ids=["tokens", "characters"])
@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_a_row_that_is_cut_keeps_the_bos_tokens_that_it_had_and_gets_none(template, talk, n_words):
    tokenizer = tokenizer_of(template)
    messages = (*talk_of(talk, n_words)[:-1], Message("assistant", "Yes."))
    row = plain(tokenizer, messages)
    cut = encoder(tokenizer, "sequence_classification", 60)(Sample(messages=messages))
    assert cut.truncated
    n = next(i for i, token in enumerate(row) if token != BOS)
    expected = [*row[:n], *row[n - 60 :]]
    assert list(cut.ids) == expected


@pytest.mark.sweep(8)
@pytest.mark.parametrize("talk", TALKS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_an_exported_checkpoint_gives_the_same_numbers_in_plain_transformers(tmp_path, template, talk):
    sequence_classifier(tmp_path / "rm")
    tokenizer_of(template).save_pretrained(tmp_path / "rm")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm").eval()
    messages = talk_of(talk)
    expected = _score(model, plain(AutoTokenizer.from_pretrained(tmp_path / "rm"), messages))
    assert export([str(tmp_path / "rm"), str(tmp_path / "out")]) == 0
    for folder in ("rm", "out"):
        checkpoint = read(str(tmp_path / folder))
        ids = checkpoint.encoder(Sample(messages=messages)).ids
        with torch.no_grad():
            assert _score(model, ids) == pytest.approx(expected, abs=1e-5)
    written = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    ids = plain(AutoTokenizer.from_pretrained(tmp_path / "out"), messages)
    assert _score(written, ids) == pytest.approx(expected, abs=1e-5)


def _score(model, ids) -> float:
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([list(ids)])).logits[0, 0])

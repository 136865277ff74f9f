"""Special tokens that a tokenizer adds before text without a chat template. The reference is TRL's code on the same text."""

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
from tests.support.tiny import CHATML, LLAMA3_LIKE, tiny_tokenizer

PREFIXES = {
    "BOS": ("<s>",),
    "EOS, as XGLM": ("<|im_end|>",),
    "two, as GLM": ("<|im_start|>", "<|endoftext|>"),
    "BOS and a language": ("<s>", "<|im_start|>"),
    "BOS twice": ("<s>", "<s>"),
    "none": (),
}
SAMPLE = Sample(prompt="What is two plus two? ", response="Four, of course.")
WHOLE = "What is two plus two? Four, of course."
BOS = 3


def tokenizer_of(prefix: tuple[str, ...], *, suffix: tuple[str, ...] = (), bos: str | None = "<s>", template=None):
    tokenizer = tiny_tokenizer(template, bos=bos)
    named = [(token, tokenizer.convert_tokens_to_ids(token)) for token in {*prefix, *suffix}]
    single = " ".join([*prefix, "$A", *suffix])
    tokenizer._tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=named)
    return tokenizer


def trl(tokenizer) -> list[int]:
    """`RewardTrainer._prepare_dataset` without a chat template."""
    return list(tokenizer(text=WHOLE + tokenizer.eos_token)["input_ids"])


def encoder(tokenizer, layout: str, max_tokens: int = 4096) -> Encoder:
    policy = infer_policy(tokenizer, max_tokens=max_tokens, vocab_size=len(tokenizer), rule=LAYOUT_RULES[layout])
    return Encoder(tokenizer, policy)


@pytest.mark.parametrize("suffix", [(), ("<|endoftext|>",)], ids=["no suffix", "a suffix"])
@pytest.mark.parametrize("bos", ["<s>", None])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_row_begins_with_all_that_the_tokenizer_puts_before_text(prefix, bos, suffix):
    tokenizer = tokenizer_of(PREFIXES[prefix], suffix=suffix, bos=bos)
    row = trl(tokenizer)
    encode = encoder(tokenizer, "sequence_classification")
    n = len(PREFIXES[prefix])
    forms = [
        SAMPLE,
        Sample(messages=(Message("user", SAMPLE.prompt), Message("assistant", SAMPLE.response))),
        Sample(text=WHOLE),
        Sample(text="".join(PREFIXES[prefix]) + WHOLE),
        Sample(input_ids=tuple(row)),
        Sample(input_ids=tuple(row[n:])),
    ]
    for sample in forms:
        assert list(encode(sample).ids) == row, sample
    encoded = encode(SAMPLE)
    assert tokenizer.decode(encoded.ids[encoded.n_prompt :]).startswith("Four")


@pytest.mark.parametrize("prefix", PREFIXES)
def test_openrlhfs_rows_have_none_of_them(prefix):
    tokenizer = tokenizer_of(PREFIXES[prefix])
    ids = encoder(tokenizer, "openrlhf")(SAMPLE).ids
    assert list(ids) == tokenizer(f"{WHOLE} {tokenizer.eos_token}", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("prefix", PREFIXES)
def test_llama_factorys_rows_have_bos_alone(prefix):
    """`_convert_elements_to_ids` adds BOS where a slot has it, and tokenises the rest without special tokens."""
    tokenizer = tokenizer_of(PREFIXES[prefix])
    ids = encoder(tokenizer, "llama_factory")(SAMPLE).ids
    slots = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (SAMPLE.prompt, SAMPLE.response)]
    bos = [BOS] * PREFIXES[prefix][:1].count("<s>")
    assert list(ids) == [*bos, *slots[0], *slots[1], tokenizer.eos_token_id]


@pytest.mark.parametrize("n_words", [60, 60_000], ids=["tokens", "characters"])
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_row_whose_prompt_is_cut_keeps_them(prefix, n_words):
    tokenizer = tokenizer_of(PREFIXES[prefix])
    row = tokenizer("a " * n_words + "Yes." + tokenizer.eos_token)["input_ids"]
    n = len(PREFIXES[prefix])
    cut = encoder(tokenizer, "sequence_classification", 40)(Sample(prompt="a " * n_words, response="Yes."))
    assert cut.truncated
    assert list(cut.ids) == [*row[:n], *row[len(row) - 40 + n :]]


@pytest.mark.sweep(3)
@pytest.mark.parametrize("prefix", PREFIXES)
def test_an_exported_checkpoint_gives_the_same_score_in_plain_transformers(tmp_path, prefix):
    sequence_classifier(tmp_path / "rm")
    (tmp_path / "rm" / "chat_template.jinja").unlink()
    tokenizer = tokenizer_of(PREFIXES[prefix])
    tokenizer.save_pretrained(tmp_path / "rm")
    expected = _score(tmp_path / "rm", trl(tokenizer))
    assert _score(tmp_path / "rm", read(str(tmp_path / "rm")).encoder(SAMPLE).ids) == pytest.approx(expected, abs=1e-5)
    assert export([str(tmp_path / "rm"), str(tmp_path / "out")]) == 0
    assert _score(tmp_path / "out", read(str(tmp_path / "out")).encoder(SAMPLE).ids) == pytest.approx(
        expected, abs=1e-5
    )
    turns = [{"role": "user", "content": SAMPLE.prompt}, {"role": "assistant", "content": SAMPLE.response}]
    written = AutoTokenizer.from_pretrained(tmp_path / "out")
    ids = written.apply_chat_template(turns, tokenize=True, return_dict=False)
    assert _score(tmp_path / "out", ids) == pytest.approx(expected, abs=1e-5)


def _score(folder, ids) -> float:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([list(ids)])).logits[0, 0])


# -- rows that depend on a version or an option of a trainer ----------------------------------------------------------


def _notes(encode: Encoder, word: str) -> list[str]:
    return [note for note in encode.notes if word in note]


@pytest.mark.parametrize(
    ("adds", "template", "layout", "is_said"),
    [
        (("<s>",), LLAMA3_LIKE, "sequence_classification", True),
        (("<s>",), LLAMA3_LIKE, "adapter", True),
        (("<s>",), LLAMA3_LIKE, "openrlhf", False),
        (("<s>",), CHATML, "sequence_classification", False),
        ((), LLAMA3_LIKE, "sequence_classification", False),
        (("<s>",), None, "sequence_classification", False),
        (("<s>",), "{{ bos_token }}" + LLAMA3_LIKE, "sequence_classification", False),
    ],
)
def test_a_second_bos_of_older_trainers_is_named_where_there_may_have_been_one(adds, template, layout, is_said):
    encode = encoder(tokenizer_of(adds, template=template), layout)
    assert bool(_notes(encode, "TRL 0.12 to 0.23")) == is_said


def test_a_template_that_writes_bos_twice_restores_the_rows_of_older_trainers():
    """TRL 0.12 to 0.23: `maybe_apply_chat_template`, then `tokenizer(chosen)`."""
    before = tokenizer_of(("<s>",), template=LLAMA3_LIKE)
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Four, of course."}]
    text = before.apply_chat_template(turns, tokenize=False)
    row = before(text)["input_ids"]
    assert row[:2] == [BOS, BOS]
    encode = encoder(tokenizer_of(("<s>",), template="{{ bos_token }}" + LLAMA3_LIKE), "sequence_classification")
    messages = tuple(Message(**turn) for turn in turns)
    bare = text.removeprefix("<s>")
    for sample in (
        Sample(messages=messages),
        *(Sample(text=start + bare) for start in ("", "<s>", "<s><s>", "<s><s><s>")),
        Sample(input_ids=tuple(row)),
        Sample(input_ids=tuple(row[1:])),
        Sample(input_ids=tuple(row[2:])),
    ):
        assert list(encode(sample).ids) == row, sample


R1 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}<|im_start|>{{ m['content'] }}{% else %}<s>{{ m['content'] }}<|im_end|>"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}<s><think>\n{% endif %}"
)


@pytest.mark.parametrize(
    ("template", "layout", "is_said"),
    [(R1, "openrlhf", True), (R1, "sequence_classification", False), (CHATML, "openrlhf", False)],
)
def test_rows_that_depend_on_openrlhfs_prompt_key_are_named(template, layout, is_said):
    tokenizer = tiny_tokenizer(template)
    encode = encoder(tokenizer, layout)
    assert bool(_notes(encode, "prompt_key")) == is_said
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Four, of course."}]
    prompt = tokenizer.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    with_key = prompt + tokenizer.apply_chat_template(turns, tokenize=False)[len(prompt) :]
    whole = list(encode(Sample(messages=tuple(Message(**turn) for turn in turns))).ids)
    text = list(encode(Sample(text=with_key)).ids)
    assert (whole == text) == (template is CHATML)
    if layout == "openrlhf":  # sent as text, the row of that option is scored as it is
        assert text == tokenizer(with_key.rstrip("\n"), add_special_tokens=False)["input_ids"]

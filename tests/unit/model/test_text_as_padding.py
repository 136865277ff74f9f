"""A pad token that is ordinary text: `pad_token_id: 0` is `!` in the vocabularies of GPT-2, Llama 3 and Qwen.

The reference is the row that `apply_chat_template` gives, scored by transformers' own class.
"""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from rewardserve.model.checkpoint import read
from rewardserve.model.conversation import Message, Sample
from rewardserve.model.export import main as export
from tests.support.checkpoints import edit_json, sequence_classifier
from tests.support.tiny import CHATML, tiny_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_rendering_processes")]

CHAT = (Message("user", "Hi"), Message("assistant", "Great!!!"))
TURNS = [{"role": m.role, "content": m.content} for m in CHAT]
TEMPLATES = {
    "ends in a newline": CHATML,
    "ends at the end token": CHATML.replace("<|im_end|>\n{% endfor", "<|im_end|>{% endfor"),
    "ends in text": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}",
}


def classifier(folder, template: str | None, pad: str = "!"):
    sequence_classifier(folder)
    (folder / "chat_template.jinja").unlink()
    tokenizer = tiny_tokenizer(template)
    tokenizer.save_pretrained(folder)
    (pad_id,) = tokenizer(pad, add_special_tokens=False)["input_ids"]
    edit_json(folder / "config.json", pad_token_id=pad_id)
    return tokenizer, pad_id, AutoModelForSequenceClassification.from_pretrained(folder).eval()


def by_class(model, ids) -> float:
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([list(ids)])).logits[0, 0])


@pytest.mark.parametrize("template", TEMPLATES)
def test_an_exclamation_mark_at_the_end_of_a_response_is_not_taken_for_padding(tmp_path, template):
    tokenizer, pad_id, model = classifier(tmp_path, TEMPLATES[template])
    row = tokenizer.apply_chat_template(TURNS, tokenize=True, return_dict=False)
    text = tokenizer.apply_chat_template(TURNS, tokenize=False)
    n_end = len(text) - text.rindex("!") - 1
    n_end_ids = len(row) - 1 - max(i for i, token in enumerate(row) if token == pad_id)
    bare = text[: len(text) - n_end]
    encode = read(str(tmp_path)).encoder
    forms = [
        Sample(messages=CHAT),
        Sample(prompt="Hi", response="Great!!!"),
        Sample(text=text),
        Sample(text=bare),
        Sample(text=bare, n_prompt_chars=len(bare) - len("Great!!!")),
        Sample(input_ids=tuple(row)),
        Sample(input_ids=tuple(row[: len(row) - n_end_ids])),
    ]
    for sample in forms:
        assert list(encode(sample).ids) == row, sample
    assert encode.texts(Sample(text=bare))[1] == "Great!!!"
    assert by_class(model, encode(forms[3]).ids) == pytest.approx(by_class(model, row), abs=1e-6)


@pytest.mark.parametrize("template", ["ends in a newline", "ends at the end token"])
def test_text_after_the_end_token_is_padding(tmp_path, template):
    tokenizer, pad_id, model = classifier(tmp_path, TEMPLATES[template])
    row = tokenizer.apply_chat_template(TURNS, tokenize=True, return_dict=False)
    text = tokenizer.apply_chat_template(TURNS, tokenize=False)
    encode = read(str(tmp_path)).encoder
    for padded in (Sample(text=text + "!!"), Sample(input_ids=(*row, pad_id, pad_id))):
        assert list(encode(padded).ids) == row
    assert by_class(model, [*row, pad_id, pad_id]) == pytest.approx(by_class(model, row), abs=1e-5)


def test_a_response_of_pad_tokens_alone_is_closed_without_a_template_too(tmp_path):
    tokenizer, pad_id, _ = classifier(tmp_path, None)
    encode = read(str(tmp_path)).encoder
    expected = (pad_id, pad_id, tokenizer.eos_token_id)
    assert encode(Sample(input_ids=(pad_id, pad_id))).ids == expected
    assert encode(Sample(text="!!")).ids == expected


def test_a_response_that_was_cut_off_is_read_where_the_class_reads_it(tmp_path):
    tokenizer, _, model = classifier(tmp_path, CHATML)
    row = tokenizer.apply_chat_template(TURNS, tokenize=True, return_dict=False)[:-2]
    encode = read(str(tmp_path)).encoder
    for cut in (Sample(messages=CHAT, finish_reason="length"), Sample(input_ids=tuple(row), finish_reason="length")):
        assert by_class(model, encode(cut).ids) == pytest.approx(by_class(model, row), abs=1e-5)
        assert encode(cut).missing_end


@pytest.mark.parametrize("pad", [" a", "\n"])
def test_a_pad_token_that_is_spelt_unlike_its_text_takes_nothing_from_a_response(tmp_path, pad):
    """Byte-level tokenizers spell a space as `Ġ` and a newline as `Ċ`."""
    tokenizer, _, _ = classifier(tmp_path, CHATML, pad)
    encode = read(str(tmp_path)).encoder
    turns = [TURNS[0], {"role": "assistant", "content": f"Great{pad}{pad}"}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    whole = encode(Sample(messages=(CHAT[0], Message("assistant", f"Great{pad}{pad}"))))
    assert encode(Sample(text=text)) == whole
    assert encode(Sample(text=text.removesuffix("<|im_end|>\n"))) == whole


def test_an_export_ends_before_a_newline_that_is_the_pad_token(tmp_path):
    tokenizer, _, model = classifier(tmp_path / "rm", CHATML, "\n")
    expected = by_class(model, tokenizer.apply_chat_template(TURNS, tokenize=True, return_dict=False))
    assert export([str(tmp_path / "rm"), str(tmp_path / "out")]) == 0
    written = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    ids = AutoTokenizer.from_pretrained(tmp_path / "out").apply_chat_template(TURNS, tokenize=True, return_dict=False)
    assert by_class(written, ids) == pytest.approx(expected, abs=1e-5)
    assert list(read(str(tmp_path / "out")).encoder(Sample(messages=CHAT)).ids) == ids

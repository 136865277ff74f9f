"""The token at which a score is read: corner cases of trainers, and the notes and settings of the operator."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from rewardserve.model.backends import LoadError, ModelSpec, load
from rewardserve.model.check import main as check
from rewardserve.model.checkpoint import read, write_contract
from rewardserve.model.checkpoint.writing import score_single_row
from rewardserve.model.conversation import EmptyResponse, Message, Sample
from rewardserve.model.encoding import Encoder
from rewardserve.model.export import main as export
from rewardserve.model.layout_rules import LAYOUT_RULES
from rewardserve.model.tokenization.encoding_policy import infer_policy
from tests.support.checkpoints import (
    PROBES,
    edit_json,
    language_model,
    merge_newlines,
    openrlhf,
    reward_model,
    sequence_classifier,
    value_head,
)
from tests.support.tiny import CHATML, tiny_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_rendering_processes")]

END, PAD = 2, 4
CHAT = (Message("user", "What is two plus two?"), Message("assistant", "Four, of course."))
CLOSED = CHATML.replace("<|im_end|>\n{% endfor", "<|im_end|>{% endfor")
"""Ends at the end token itself."""


def classifier(folder: Path, *, pad: int | None, template: str = CLOSED, architecture: str = "llama"):
    """A classifier whose configuration has this pad token, and transformers' own class of it."""
    sequence_classifier(folder, architecture)
    tiny_tokenizer(template).save_pretrained(folder)
    edit_json(folder / "config.json", pad_token_id=pad)
    return AutoModelForSequenceClassification.from_pretrained(folder).eval()


def by_class(model, ids) -> float:
    with torch.no_grad():
        return float(model(input_ids=torch.tensor([list(ids)])).logits[0, 0])


def served(folder: Path, sample: Sample, **spec) -> float:
    loaded = load("torch", ModelSpec(str(folder), matmul_precision="highest", **spec))
    from rewardserve.model.scorer import TokenBatch

    return loaded.identity.raw(loaded.scorer.score(TokenBatch((loaded.encode(sample).ids,))).rows[0])


def rendered(folder: Path, messages=CHAT) -> list[int]:
    turns = [{"role": m.role, "content": m.content} for m in messages]
    return list(read(str(folder)).tokenizer.apply_chat_template(turns, tokenize=True, return_dict=True)["input_ids"])


# -- transformers' classifiers ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("pad", [END, PAD, None])
def test_pad_tokens_at_the_end_of_a_row_are_skipped_wherever_they_come_from(tmp_path, pad):
    model = classifier(tmp_path, pad=pad)
    whole = rendered(tmp_path)
    expected = by_class(model, whole)
    rows = [whole] if pad is None else [whole, [*whole, pad], [*whole, pad, pad, pad]]
    for row in rows:
        assert by_class(model, row) == pytest.approx(expected, abs=1e-5)
        assert served(tmp_path, Sample(input_ids=tuple(row))) == pytest.approx(expected, abs=1e-5)
    text = read(str(tmp_path)).tokenizer.decode(whole)
    padding = "" if pad is None else read(str(tmp_path)).tokenizer.decode([pad, pad])
    for ending in ("", padding):
        assert served(tmp_path, Sample(text=text + ending)) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("architecture", "pad"), [("llama", -1), ("llama", -100), ("gpt2", -1), ("gpt2", 4096), ("gpt2", 2**40)]
)
def test_a_pad_token_outside_the_vocabulary_is_no_token_of_a_row(tmp_path, architecture, pad):
    """Early LLaMA configurations have -1. transformers' class then finds no pad token in a row and reads the last one."""
    model = classifier(tmp_path, pad=pad, architecture=architecture)
    whole = rendered(tmp_path)
    for row in (whole, [*whole, PAD], whole[:-1]):
        expected = by_class(model, row)
        cut = Sample(input_ids=tuple(row), finish_reason="length")
        assert served(tmp_path, cut) == pytest.approx(expected, abs=1e-5)
    checkpoint = read(str(tmp_path))
    assert checkpoint.policy.skip_id is None
    assert 0 <= checkpoint.pad_id < checkpoint.policy.vocab_size
    assert export([str(tmp_path), str(tmp_path / "out")]) == 0
    assert served(tmp_path / "out", Sample(messages=CHAT)) == pytest.approx(by_class(model, whole), abs=1e-5)


def test_a_pad_token_that_has_an_embedding_and_no_text_takes_nothing_from_a_text(tmp_path):
    """A table with more rows than the tokenizer has tokens: text never becomes such a pad token."""
    n = len(tiny_tokenizer())
    sequence_classifier(tmp_path, shape={"vocab_size": n + 8})
    tiny_tokenizer(CLOSED.replace("<|im_end|>{% endfor", "None{% endfor")).save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", pad_token_id=n + 3)
    expected = served(tmp_path, Sample(messages=CHAT))
    assert export([str(tmp_path), str(tmp_path / "out")]) == 0
    assert served(tmp_path / "out", Sample(messages=CHAT)) == pytest.approx(expected, abs=1e-5)


def test_a_row_of_nothing_but_padding_is_scored_at_its_first_token(tmp_path):
    model = classifier(tmp_path, pad=PAD)
    assert served(tmp_path, Sample(input_ids=(PAD, PAD, PAD))) == pytest.approx(by_class(model, [PAD] * 3), abs=1e-5)


def test_a_response_that_was_cut_off_is_read_at_its_last_token_and_flagged(tmp_path):
    model = classifier(tmp_path, pad=END)
    ids = rendered(tmp_path)
    for cut in (
        Sample(messages=CHAT, finish_reason="length"),
        Sample(input_ids=tuple(ids[:-1]), finish_reason="length"),
    ):
        encoded = read(str(tmp_path)).encoder(cut)
        assert list(encoded.ids) == ids[:-1]
        assert encoded.missing_end
        assert served(tmp_path, cut) == pytest.approx(by_class(model, ids[:-1]), abs=1e-5)
    assert not read(str(tmp_path)).encoder(Sample(input_ids=tuple(ids), finish_reason="length")).missing_end


@pytest.mark.parametrize("pad", [END, PAD])
def test_a_response_that_brings_its_own_end_token_scores_as_one_without(tmp_path, pad):
    classifier(tmp_path, pad=pad)
    expected = served(tmp_path, Sample(messages=CHAT))
    for ending in ("<|im_end|>", "<|im_end|>\n"):
        sample = Sample(prompt=CHAT[0].content, response=CHAT[1].content + ending)
        assert served(tmp_path, sample) == pytest.approx(expected, abs=1e-6)


def test_a_prompt_that_is_cut_leaves_the_position_where_it_is(tmp_path):
    model = classifier(tmp_path, pad=END)
    long = (Message("user", "two plus two " * 40), CHAT[1])
    encoded = read(str(tmp_path)).encoder
    whole = encoded(Sample(messages=long)).ids
    loaded = load("torch", ModelSpec(str(tmp_path), max_input_tokens=40))
    cut = loaded.encode(Sample(messages=long))
    assert cut.truncated
    assert cut.ids == whole[-40:]
    assert by_class(model, [*cut.ids, END]) == pytest.approx(
        score_single_row(read(str(tmp_path)).network, cut.ids), abs=1e-5
    )


def test_several_labels_are_read_where_the_class_reads_them(tmp_path):
    sequence_classifier(tmp_path, n_labels=3)
    tiny_tokenizer(CLOSED).save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", pad_token_id=END, reward_head_weights=[1, 0.5, -0.1])
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    with torch.no_grad():
        a, b, c = model(input_ids=torch.tensor([rendered(tmp_path)])).logits[0].tolist()
    assert served(tmp_path, Sample(messages=CHAT)) == pytest.approx(a + 0.5 * b - 0.1 * c, abs=1e-5)


def test_end_tokens_of_a_generation_config_have_no_part_in_it(tmp_path):
    classifier(tmp_path, pad=PAD)
    expected = served(tmp_path, Sample(messages=CHAT))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, END, 3], "pad_token_id": 0}))
    edit_json(tmp_path / "config.json", eos_token_id=[0, END, 3])
    assert served(tmp_path, Sample(messages=CHAT)) == expected


def test_a_template_that_writes_no_bos_gets_none_though_the_tokenizer_adds_one_to_text(tmp_path):
    from tokenizers.processors import TemplateProcessing

    classifier(tmp_path, pad=PAD)
    tokenizer = tiny_tokenizer(CLOSED, bos="<s>")
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 3)])
    tokenizer.save_pretrained(tmp_path)
    assert list(read(str(tmp_path)).encoder(Sample(messages=CHAT)).ids) == rendered(tmp_path)


# -- OpenRLHF, value heads --------------------------------------------------------------------------------------------


def test_an_openrlhf_checkpoint_under_another_architectures_name_is_still_openrlhfs(tmp_path):
    openrlhf(tmp_path, "score")
    edit_json(tmp_path / "config.json", architectures=["LlamaForSequenceClassification"])
    checkpoint = read(str(tmp_path))
    assert checkpoint.format == "openrlhf"
    assert checkpoint.policy.end_text == "<|im_end|>"


def test_a_response_is_tokenised_apart_where_llama_factory_did(tmp_path):
    value_head(tmp_path, separate=True)
    merge_newlines(tmp_path)
    checkpoint = read(str(tmp_path))
    prompt = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    fast = checkpoint.tokenizer
    apart = [i for text in (prompt, "\n\nYes<|im_end|>\n") for i in fast(text, add_special_tokens=False)["input_ids"]]
    assert list(checkpoint.encoder(Sample(prompt="Hi", response="\n\nYes")).ids) == apart
    assert apart != fast(f"{prompt}\n\nYes<|im_end|>\n", add_special_tokens=False)["input_ids"]


# -- notes and settings ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (openrlhf, "at token 2 `<|im_end|>`, the last of the rendering without its newline, because the layout is OpenRLHF"),
        (lambda f: value_head(f, separate=True), "`\\n`, the last of the rendering, because the layout is LLaMA-Factory's"),
        (lambda f: classifier(f, pad=PAD), "at token 2 `<|im_end|>`, the last of the rendering, because the layout is tr"),
        (lambda f: classifier(f, pad=END), "at the response's last token, the last before `<|im_end|>`"),
        (reward_model, "at token 2 `<|im_end|>`, the last of the rendering, because scoring_contract.json says so"),
    ],
    ids=["openrlhf", "llama_factory", "classifier", "pad_is_end", "ours"],
)  # fmt: skip
def test_reward_check_says_where_and_why(tmp_path, capsys, make, words):
    make(tmp_path / "rm")
    assert check([str(tmp_path / "rm")]) == 0
    assert words in capsys.readouterr().out
    assert words in load("torch", ModelSpec(str(tmp_path / "rm"))).identity.score_position


def test_an_inferred_ending_and_position_are_settings(tmp_path, capsys):
    openrlhf(tmp_path)
    loaded = load("torch", ModelSpec(str(tmp_path), ending="template"))
    assert loaded.contract.end_text == "<|im_end|>\n"
    assert (loaded.contract.ending, loaded.contract.reads_at) == ("template", "last")
    assert "the operator has set it" in loaded.identity.score_position
    assert check([str(tmp_path), "--ending", "template", "--reads-at", "last_non_pad"]) == 0
    assert "`\\n`, the last of the rendering, because the operator" in capsys.readouterr().out


def test_a_written_contract_is_binding_and_says_that_the_settings_do_nothing(tmp_path):
    reward_model(tmp_path / "rm")
    plain = load("torch", ModelSpec(str(tmp_path / "rm")))
    asked = load(
        "torch", ModelSpec(str(tmp_path / "rm"), ending="eos", reads_at="last_non_pad", template_date="2020-01-01")
    )
    assert asked.contract == plain.contract
    assert asked.encode(PROBES[0]) == plain.encode(PROBES[0])
    told = next(note for note in asked.identity.engine_notes if "scoring_contract.json is binding" in note)
    assert told.startswith("ending=eos, reads_at=last_non_pad, template_date=2020-01-01 is ignored: ")
    same = load("torch", ModelSpec(str(tmp_path / "rm"), ending=plain.contract.ending))
    assert same.identity.engine_notes == plain.identity.engine_notes
    assert not any("scoring_contract.json is binding" in note for note in plain.identity.engine_notes)


def test_a_contract_with_an_unknown_ending_is_refused_in_words(tmp_path):
    reward_model(tmp_path / "rm")
    edit_json(tmp_path / "rm" / "scoring_contract.json", ending="somehow")
    with pytest.raises(LoadError, match=r"ending must be one of template, .*, not 'somehow'"):
        load("torch", ModelSpec(str(tmp_path / "rm")))


# -- export -----------------------------------------------------------------------------------------------------------


def language_with_adapter(folder: Path) -> None:
    from peft import LoraConfig, get_peft_model

    base = language_model(folder.parent / "base", template="{% for m in messages %}{{ m['content'] }}!{% endfor %}")
    whole = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    lora = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj"], modules_to_save=["score"])
    lora.base_model_name_or_path = str(base)
    get_peft_model(whole, lora).save_pretrained(folder)
    tiny_tokenizer(CHATML).save_pretrained(folder)


@pytest.mark.sweep(3)
@pytest.mark.parametrize("make", [
    lambda f: classifier(f, pad=PAD),
    lambda f: classifier(f, pad=END),
    lambda f: classifier(f, pad=PAD, template=CHATML),
    openrlhf,
    language_with_adapter,
], ids=["classifier", "pad_is_end", "newline", "openrlhf", "adapter"])  # fmt: skip
def test_an_exported_checkpoint_scores_as_the_one_it_was_made_of_and_in_plain_transformers(tmp_path, make):
    make(tmp_path / "rm")
    expected = served(tmp_path / "rm", Sample(messages=CHAT))
    assert export([str(tmp_path / "rm"), str(tmp_path / "out")]) == 0
    assert served(tmp_path / "out", Sample(messages=CHAT)) == pytest.approx(expected, abs=1e-5)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out").eval()
    assert by_class(model, rendered(tmp_path / "out")) == pytest.approx(expected, abs=1e-5)


@pytest.mark.sweep(3)
@pytest.mark.parametrize(("make", "is_elsewhere"), [
    (lambda f: classifier(f, pad=PAD), False),
    (lambda f: classifier(f, pad=END), True),
    (lambda f: classifier(f, pad=PAD, template=CHATML), True),
    (openrlhf, False),
    (reward_model, False),
], ids=["classifier", "pad_is_end", "newline", "openrlhf", "ours"])  # fmt: skip
def test_an_export_says_where_openrlhf_reads_another_token(tmp_path, capsys, make, is_elsewhere):
    """OpenRLHF's `RewardDataset`: newlines are stripped, and EOS is the last id."""
    make(tmp_path / "rm")
    assert export([str(tmp_path / "rm"), str(tmp_path / "out")]) == 0
    assert ("OpenRLHF ends every row with EOS" in capsys.readouterr().out) == is_elsewhere
    tokenizer = read(str(tmp_path / "out")).tokenizer
    turns = [{"role": m.role, "content": m.content} for m in CHAT]
    text = tokenizer.apply_chat_template(turns, tokenize=False).rstrip("\n")
    text = text if text.endswith(tokenizer.eos_token) else f"{text} {tokenizer.eos_token}"
    assert (tokenizer(text, add_special_tokens=False)["input_ids"] != rendered(tmp_path / "out")) == is_elsewhere


def test_an_export_moves_the_bias_of_a_value_head_into_the_calibration_and_says_so(tmp_path, capsys):
    value_head(tmp_path / "vh", separate=True)
    edit_json(tmp_path / "vh" / "config.json", mean=0.3, std=2.5)
    before = served(tmp_path / "vh", Sample(messages=CHAT))
    assert export([str(tmp_path / "vh"), str(tmp_path / "out")]) == 0
    assert "bias of 0.7" in capsys.readouterr().out
    assert served(tmp_path / "out", Sample(messages=CHAT)) == pytest.approx(before - 0.7, abs=1e-5)
    assert read(str(tmp_path / "out")).calibration.mean == pytest.approx(0.3 - 0.7)


def test_a_contract_is_written_again_with_its_probes_and_limits(tmp_path):
    reward_model(tmp_path / "rm", contract=False)
    written = write_contract(tmp_path / "rm", probes=PROBES, max_tokens=100)
    old = json.loads((tmp_path / "rm" / "scoring_contract.json").read_text())
    (tmp_path / "rm" / "scoring_contract.json").write_text(json.dumps({**old, "format": 1}))
    assert export([str(tmp_path / "rm")]) == 0
    assert read(str(tmp_path / "rm")).contract == written


def test_a_folder_that_is_in_use_is_not_overwritten(tmp_path, capsys):
    reward_model(tmp_path / "rm")
    with pytest.raises(SystemExit, match="2"):
        export([str(tmp_path / "rm"), str(tmp_path / "rm")])
    assert "is not empty" in capsys.readouterr().err


def test_a_folder_that_the_system_refuses_is_a_usage_error(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        export([str(tmp_path / "rm"), str(tmp_path / ("a" * 300))])
    assert "cannot be read: File name too long" in capsys.readouterr().err


def test_an_empty_response_before_a_skipped_end_token_is_still_refused(tmp_path):
    classifier(tmp_path, pad=END)
    with pytest.raises(EmptyResponse):
        read(str(tmp_path)).encoder(Sample(prompt="Hi", response="<|im_end|>"))


@pytest.mark.parametrize(
    "tail", ["<|im_end|>\n<|endoftext|>", " <|endoftext|>", "<|endoftext|>", "<|endoftext|><|endoftext|>"]
)
@pytest.mark.parametrize("response", ["Four, of course", "trailing \n", " both ", "a\n\n"])
def test_every_form_of_a_sample_ends_once_where_the_ending_ends_with_the_pad_token(tail, response):
    """Phi-3's and Llama 2's templates end so, with a pad token that is EOS."""
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{% if m['role'] == 'assistant' %}"
        + tail
        + "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = tiny_tokenizer(template, eos="<|endoftext|>", pad="<|endoftext|>")
    policy = infer_policy(
        tokenizer, max_tokens=256, vocab_size=len(tokenizer), rule=LAYOUT_RULES["sequence_classification"], pad_id=0
    )
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": response}]
    text = tokenizer.apply_chat_template(turns, tokenize=False)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    read = ids[: max(i + 1 for i, token in enumerate(ids) if token != tokenizer.pad_token_id)]
    encode = Encoder(tokenizer, policy)
    forms = [
        Sample(prompt="What?", response=response),
        Sample(text=text),
        Sample(input_ids=tuple(ids)),
        Sample(text=text + "<|endoftext|>"),
    ]
    assert [list(encode(sample).ids) for sample in forms] == [read] * len(forms)

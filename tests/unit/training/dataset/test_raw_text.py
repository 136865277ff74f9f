"""Training data as plain text: the server gives prompt and response the ids of training, or the run is refused in words."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer

from rewardserve.model.backends import ModelSpec, load
from rewardserve.model.checkpoint import read_backbone
from rewardserve.model.contract import sample_from_dict
from rewardserve.model.conversation import Message, Sample
from rewardserve.training.dataset import raw_text
from rewardserve.training.dataset.feedback import Pair
from rewardserve.training.results import export
from rewardserve.training.settings.validation import ConfigError
from tests.support.checkpoints import language_model
from tests.support.tiny import CHATML, LLAMA3_LIKE

PROMPTS = ("What is two plus two? ", "Hi\n\nA: ", "Quote <|im_end|> please: ")


def pair(i: int, chosen: Sample, rejected: Sample) -> Pair:
    return Pair(f"f:{i}", "f", str(i), "score", chosen, rejected, "", "")


def explicit(prompts=PROMPTS) -> list[Pair]:
    text = lambda prompt, answer: Sample(text=prompt + answer, n_prompt_chars=len(prompt))  # noqa: E731
    return [pair(i, text(prompt, "Four."), text(prompt, "No\n")) for i, prompt in enumerate(prompts)]


def conversations() -> list[Pair]:
    return [pair(9, Sample(prompt="Hi", response="Yes"), Sample(prompt="Hi", response="No"))]


@pytest.fixture(params=[CHATML, LLAMA3_LIKE, None], ids=["chatml", "bos", "none"])
def start(request, tmp_path):
    bos = {} if request.param == CHATML else {"bos": "<s>"}
    return read_backbone(str(language_model(tmp_path / "sft", template=request.param, **bos)))


def test_prompt_and_response_are_served_with_the_ids_of_training(start, tmp_path):
    fitted = raw_text.fit_template(start, explicit(), is_bound=False)
    pairs = raw_text.as_served(explicit(), fitted.policy)
    fitted.network.heads.weight.data.normal_()
    fitted.network.eval()
    export.export_checkpoint(tmp_path / "rm", fitted, [each.chosen for each in pairs])
    encode = load("torch", ModelSpec(str(tmp_path / "rm"))).encode
    for prompt, each in zip(PROMPTS, pairs, strict=True):
        trained = fitted.encoder(each.rejected).ids
        turns = (Message("user", prompt), Message("assistant", "No\n"))
        assert encode(Sample(prompt=prompt, response="No\n")).ids == trained
        assert encode(Sample(messages=turns)).ids == trained
        assert encode(Sample(input_ids=trained)).ids == trained
        if "<|im_end|>" not in prompt:
            assert encode(Sample(text=prompt + "No\n")).ids == trained
            plain = AutoTokenizer.from_pretrained(tmp_path / "rm")
            rendered = plain.apply_chat_template(
                [{"role": turn.role, "content": turn.content} for turn in turns], tokenize=True, return_dict=True
            )
            assert tuple(rendered["input_ids"]) == trained


def test_text_that_the_template_has_rendered_counts_as_conversations(tmp_path):
    start = read_backbone(str(language_model(tmp_path / "sft")))
    body = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    pairs = [pair(0, Sample(text=body + "Yes"), Sample(text=body + "No<|im_end|>\n"))]
    assert raw_text.fit_template(start, [*pairs, *conversations()], is_bound=False) is start
    assert start.encoder(pairs[0].rejected).ids == start.encoder(conversations()[0].rejected).ids


def test_plain_text_beside_conversations_is_refused_with_counts(tmp_path):
    start = read_backbone(str(language_model(tmp_path / "sft")))
    with pytest.raises(ConfigError, match="3 of 4 pairs are plain text"):
        raw_text.fit_template(start, [*explicit(), *conversations()], is_bound=False)


def test_a_model_with_a_template_is_not_judged_on_plain_text(tmp_path):
    start = read_backbone(str(language_model(tmp_path / "sft")))
    with pytest.raises(ConfigError, match="renders conversations"):
        raw_text.fit_template(start, explicit(), is_bound=True)


def test_probes_of_a_contract_read_back_as_they_were(start, tmp_path):
    fitted = raw_text.fit_template(start, explicit(), is_bound=False)
    fitted.network.eval()
    samples = [each.chosen for each in raw_text.as_served(explicit(), fitted.policy)]
    contract = export.export_checkpoint(tmp_path / "rm", fitted, samples)
    assert [sample_from_dict(probe.sample) for probe in contract.probes] == samples
    assert Path(tmp_path / "rm" / "chat_template.jinja").is_file()

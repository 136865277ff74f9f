"""Exports of checkpoints whose chat template ends conversations in different ways, or in the pad token that is skipped.

The reference is transformers' class on the checkpoint before and after, and OpenRLHF's data set code for its layout.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import AddedToken
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from rewardserve.model.backends import ModelSpec, load
from rewardserve.model.conversation import Message, Sample
from rewardserve.model.export import main as export
from rewardserve.model.scorer import TokenBatch
from tests.support.checkpoints import openrlhf, sequence_classifier
from tests.support.tiny import CHATML, tiny_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("kept_rendering_processes")]

TALKS = (
    (("user", "What is two plus two?"), ("assistant", "Four, of course.")),
    (("user", "Hi"), ("assistant", "a fox")),
    (("user", "Hi"), ("assistant", "a fox xyzzy")),
    (("system", "Be brief."), ("user", "hello"), ("assistant", "Ünïcödé 你好")),
    (("user", "two"), ("assistant", "plus"), ("user", "two"), ("assistant", "four\n")),
)
CONDITIONS = {
    "by a system turn": "messages[0]['role'] == 'system'",
    "by the number of turns": "messages | length > 3",
    "by a full stop": "m['content'].endswith('.')",
    "by a word that no probe has": "'xyzzy' in m['content']",
}
END, OTHER = "<|im_end|>", "<|endoftext|>"
ENDINGS = [
    ("by a system turn", END, OTHER + END, END),
    ("by the number of turns", OTHER + END, END, END),
    ("by a full stop", END, OTHER, END),
    ("by a system turn", END, "", END),
    ("by a word that no probe has", "", END + END, END),
    ("by the number of turns", OTHER, END, None),
    ("by a system turn", "{{ eos_token }}", OTHER, "<pad>"),
    ("by a full stop", OTHER + END, "{{ pad_token }}", "<pad>"),
]
ENDINGS_OF_OPENRLHF = [
    ("by a system turn", END, OTHER),
    ("by a full stop", OTHER, END + "\n"),
    ("by a word that no probe has", "--\n", ""),
]


def template(condition: str, first: str, second: str) -> str:
    return (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}{% if m['role'] != 'assistant' %}<|im_end|>\n"
        f"{{% elif {CONDITIONS[condition]} %}}{first}{{% else %}}{second}{{% endif %}}{{% endfor %}}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


def by_transformers(folder: Path) -> list[float]:
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = [tokenizer.apply_chat_template(turns(talk), tokenize=True, return_dict=False) for talk in TALKS]
    with torch.no_grad():
        return [float(model(input_ids=torch.tensor([row])).logits[0, 0]) for row in rows]


def by_openrlhf(folder: Path, weight: torch.Tensor) -> list[float]:
    """`RewardDataset.__getitem__` without `prompt_key`, and the last token's value."""
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    scores = []
    for talk in TALKS:
        text = tokenizer.apply_chat_template(turns(talk), tokenize=False).rstrip("\n")
        text += "" if text.endswith(tokenizer.eos_token) else " " + tokenizer.eos_token
        row = tokenizer(text, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            scores.append(float(model(torch.tensor([row])).last_hidden_state[0, -1] @ weight[0]))
    return scores


def turns(talk: tuple[tuple[str, str], ...]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in talk]


def served(folder: Path) -> list[float]:
    loaded = load("torch", ModelSpec(str(folder), matmul_precision="highest"))
    samples = [Sample(messages=tuple(Message(*turn) for turn in talk)) for talk in TALKS]
    rows = tuple(loaded.encode(sample).ids for sample in samples)
    return [loaded.identity.raw(heads) for heads in loaded.scorer.score(TokenBatch(rows)).rows]


def differences(one: list[float], other: list[float]) -> list[float]:
    return [abs(a - b) for a, b in zip(one, other, strict=True)]


@pytest.mark.sweep(3)
@pytest.mark.parametrize(("condition", "first", "second", "pad"), ENDINGS)
def test_an_exported_classifier_scores_every_ending_as_before(tmp_path, condition, first, second, pad):
    tokenizer = tiny_tokenizer(template(condition, first, second), pad=pad)
    sequence_classifier(tmp_path / "rm", shape={"pad_token_id": tokenizer.pad_token_id})
    tokenizer.save_pretrained(tmp_path / "rm")
    trained = by_transformers(tmp_path / "rm")
    assert max(differences(served(tmp_path / "rm"), trained)) < 1e-5
    assert export([str(tmp_path / "rm"), str(tmp_path / "out")]) == 0
    assert max(differences(by_transformers(tmp_path / "out"), trained)) < 1e-5
    assert max(differences(served(tmp_path / "out"), trained)) < 1e-5


@pytest.mark.parametrize(("condition", "first", "second"), ENDINGS_OF_OPENRLHF)
def test_an_exported_reward_model_of_openrlhf_scores_every_ending_as_before(tmp_path, condition, first, second):
    openrlhf(tmp_path / "rm")
    tiny_tokenizer(template(condition, first, second)).save_pretrained(tmp_path / "rm")
    weight = load_file(tmp_path / "rm" / "model.safetensors")["value_head.weight"]
    trained = by_openrlhf(tmp_path / "rm", weight)
    assert max(differences(served(tmp_path / "rm"), trained)) < 1e-5
    assert export([str(tmp_path / "rm"), str(tmp_path / "out")]) == 0
    for scores in (by_transformers(tmp_path / "out"), served(tmp_path / "out"), by_openrlhf(tmp_path / "out", weight)):
        assert max(differences(scores, trained)) < 1e-5


def test_a_skipped_end_token_that_takes_the_newline_after_it_is_left_out_with_it(tmp_path):
    """Phi-3's end tokens take white space on their right, and `pad_token_id` may be one of them."""
    tokenizer = tiny_tokenizer(CHATML, pad=END)
    tokenizer.add_tokens([AddedToken(END, special=True, normalized=False, rstrip=True)], special_tokens=True)
    sequence_classifier(tmp_path / "rm", shape={"pad_token_id": tokenizer.pad_token_id})
    tokenizer.save_pretrained(tmp_path / "rm")
    trained = by_transformers(tmp_path / "rm")
    assert export([str(tmp_path / "rm"), str(tmp_path / "out")]) == 0
    assert max(differences(by_transformers(tmp_path / "out"), trained)) < 1e-5


def test_a_varied_ending_is_noted_for_openrlhf(tmp_path, capsys):
    sequence_classifier(tmp_path / "rm")
    tiny_tokenizer(template("by a full stop", OTHER, END)).save_pretrained(tmp_path / "rm")
    assert export([str(tmp_path / "rm"), str(tmp_path / "out")]) == 0
    assert "OpenRLHF ends every row with EOS" in capsys.readouterr().out

"""Scores that are served against scores of each layout's own code, for every layout, chat template and pad token.

`python -m tests.score_table` writes the table of `docs/explanation/scores.md`. The references are transformers' own classes, and
the code of TRL, OpenRLHF and LLaMA-Factory written out; none of them uses ours. Everything runs on tiny random models.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerFast,
)

from rewardserve.model.backends import ModelSpec, load
from rewardserve.model.checkpoint import read_backbone
from rewardserve.model.conversation import Message, Sample
from rewardserve.model.scorer import TokenBatch
from rewardserve.training.loop.methods import adapt
from rewardserve.training.results import export as exporting
from rewardserve.training.settings.model_config import MethodConfig
from tests.support.tiny import randomize, tiny_config, tiny_tokenizer

Talk = tuple[str, str]
Rows = list[list[int]]
Result = tuple[list[float], Rows]
"""Scores by the code of the layout's trainer, and its ids of each conversation."""
PAGE = Path(__file__).resolve().parents[1] / "docs" / "explanation" / "scores.md"
TALKS: tuple[Talk, ...] = (
    ("What is two plus two?", "Four, of course."),
    ("Hi", "a " * 9 + "fox"),
    ("Ünïcödé 你好", "é 🙂 jumps over the lazy dog\n"),
    ("the quick brown fox", "no"),
)
PROBES = [Sample(prompt=prompt, response=response) for prompt, response in TALKS]


@dataclass(frozen=True, slots=True)
class Template:
    """A chat template, its tokens, and its slots in LLaMA-Factory: prefix, user turn, text after a response."""

    jinja: str | None
    bos: str | None
    eos: str
    end: str
    specials: tuple[str, ...]
    slots: tuple[str, str, str, str]


def _turns(user: str, assistant: str, opens: str, prefix: str = "") -> str:
    return (
        f"{prefix}{{% for m in messages %}}{{% if m['role'] == 'user' %}}{user}{{% else %}}{assistant}{{% endif %}}"
        f"{{% endfor %}}{{% if add_generation_prompt %}}{opens}{{% endif %}}"
    )


_C = "{{ m['content'] }}"
TEMPLATES: dict[str, Template] = {
    "ChatML": Template(
        _turns(f"<|im_start|>user\n{_C}<|im_end|>\n", f"<|im_start|>assistant\n{_C}<|im_end|>\n", "<|im_start|>assistant\n"),
        None, "<|im_end|>", "<|im_end|>", (),
        ("", "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", "", "<|im_end|>\n"),
    ),
    "ChatML, other EOS": Template(
        _turns(f"<|im_start|>user\n{_C}<|im_end|>\n", f"<|im_start|>assistant\n{_C}<|im_end|>\n", "<|im_start|>assistant\n"),
        None, "<|endoftext|>", "<|im_end|>", (),
        ("", "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", "", "<|im_end|>\n"),
    ),
    "Llama 3": Template(
        _turns(
            f"<|start_header_id|>user<|end_header_id|>\n\n{_C}<|eot_id|>",
            f"<|start_header_id|>assistant<|end_header_id|>\n\n{_C}<|eot_id|>",
            "<|start_header_id|>assistant<|end_header_id|>\n\n", "{{ bos_token }}",
        ),
        "<|begin_of_text|>", "<|eot_id|>", "<|eot_id|>",
        ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        (
            "<|begin_of_text|>",
            "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n",
            "", "<|eot_id|>",
        ),
    ),
    "Gemma": Template(
        _turns(
            f"<start_of_turn>user\n{_C}<end_of_turn>\n", f"<start_of_turn>model\n{_C}<end_of_turn>\n",
            "<start_of_turn>model\n", "{{ bos_token }}",
        ),
        "<bos>", "<eos>", "<end_of_turn>", ("<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>"),
        ("<bos>", "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n", "", "<end_of_turn>\n"),
    ),
    "Mistral": Template(
        _turns(f"[INST] {_C} [/INST]", f" {_C}</s>", "", "{{ bos_token }}"),
        "<s>", "</s>", "</s>", ("</s>", "[INST]", "[/INST]"),
        ("<s>", "[INST] {} [/INST]", " ", "</s>"),
    ),
    "ends in text": Template(
        _turns(f"user: {_C}\n", f"assistant: {_C}\n", "assistant: "),
        None, "<|endoftext|>", "<|endoftext|>", (),
        ("", "user: {}\nassistant: ", "", "\n"),
    ),
    "two end tokens": Template(
        _turns(
            f"<|im_start|>user\n{_C}<|im_end|>\n", f"<|im_start|>assistant\n{_C}<|im_end|><|im_end|>\n",
            "<|im_start|>assistant\n",
        ),
        None, "<|im_end|>", "<|im_end|>", (),
        ("", "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n", "", "<|im_end|><|im_end|>\n"),
    ),
    "none": Template(None, "<s>", "<|endoftext|>", "<|endoftext|>", (), ("", "{}", "", "")),
}  # fmt: skip
PADS = ("separate", "EOS", "the end token", "none")


def tokenizer_of(template: Template, pad: str) -> PreTrainedTokenizerFast:
    """A small tokenizer; like Llama's it adds BOS to plain text where it has one."""
    pads = {"separate": "<pad>", "EOS": template.eos, "the end token": template.end, "none": None}
    fast = tiny_tokenizer(template.jinja)
    fast.add_special_tokens({"additional_special_tokens": list(template.specials)})
    fast.bos_token, fast.eos_token, fast.pad_token = template.bos, template.eos, pads[pad]
    if template.bos:
        bos = (template.bos, fast.convert_tokens_to_ids(template.bos))
        fast._tokenizer.post_processor = TemplateProcessing(single=f"{template.bos} $A", special_tokens=[bos])
    return fast


def config_of(fast: PreTrainedTokenizerFast, **more: Any) -> Any:
    """A tiny Llama whose configuration names the tokenizer's pad token, as trainers write it."""
    return tiny_config("llama", len(fast), pad_token_id=fast.pad_token_id, bos_token_id=None, eos_token_id=None, **more)


# -- checkpoints and scores by the code of their trainers -------------------------------------------------------------


def sequence_classification(folder: Path, fast: PreTrainedTokenizerFast, template: Template) -> Result:
    """transformers' class on `apply_chat_template`; without a template on TRL's text: EOS appended, tokenised by default."""
    model = AutoModelForSequenceClassification.from_config(config_of(fast, num_labels=1))
    randomize(model)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return _by_class(model.eval(), fast)


def adapter(folder: Path, fast: PreTrainedTokenizerFast, template: Template) -> Result:
    """PEFT's class over a base model with another chat template and another pad token: the trainer's are the adapter's."""
    from peft import LoraConfig, PeftModelForSequenceClassification, get_peft_model

    base = folder.parent / f"{folder.name}-base"
    model = AutoModelForCausalLM.from_config(config_of(fast))
    randomize(model)
    model.save_pretrained(base)
    other = tokenizer_of(template, "separate")
    other.chat_template = "{% for m in messages %}{{ m['content'] }}<pad>{% endfor %}"
    other.save_pretrained(base)
    settings = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**settings, "pad_token_id": None}))
    lora = LoraConfig(task_type="SEQ_CLS", r=4, target_modules=["q_proj", "o_proj"], modules_to_save=["score"])
    lora.base_model_name_or_path = str(base)
    classifier = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    classifier.config.pad_token_id = fast.pad_token_id  # as TRL's trainer sets it
    tuned = get_peft_model(classifier, lora)
    generator = torch.Generator().manual_seed(5)
    for name, parameter in tuned.named_parameters():
        if "lora_" in name or "modules_to_save" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    assert isinstance(tuned, PeftModelForSequenceClassification)
    tuned.save_pretrained(folder)
    fast.save_pretrained(folder)
    return _by_class(tuned.eval(), fast)


def openrlhf(folder: Path, fast: PreTrainedTokenizerFast, template: Template) -> Result:
    """OpenRLHF's `RewardDataset.__getitem__` and `collate_fn`, and the forward of its `RewardModel`."""
    model = AutoModelForSequenceClassification.from_config(config_of(fast, num_labels=1))
    randomize(model)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors["value_head.weight"] = tensors.pop("score.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    named = {**settings, "architectures": ["RewardModel"], "value_head_prefix": "value_head"}
    (folder / "config.json").write_text(json.dumps(named))
    return _by_openrlhf(AutoModel.from_pretrained(folder).eval(), tensors["value_head.weight"], fast)


def llama_factory(folder: Path, fast: PreTrainedTokenizerFast, template: Template) -> Result:
    """LLaMA-Factory's `encode_oneturn` and the gather of its `PairwiseTrainer`; `efficient_eos` where no token ends a turn."""
    backbone, weight, bias = _with_value_head(folder, fast, separate=True)
    prefix, user, before, after = template.slots
    rows = []
    for prompt, response in TALKS:
        elements = [prefix, user.format(prompt), before + response + after]
        ids = [i for element in elements for i in fast(element, add_special_tokens=False)["input_ids"]]
        if template.jinja is None and template.bos:
            ids = [fast.bos_token_id, *ids]
        is_closed = template.end in after
        rows.append(ids if is_closed else [*ids, fast.eos_token_id])
    ids_BT, mask_BT = _padded(rows, "right")
    with torch.no_grad():
        values_BT = backbone(ids_BT, attention_mask=mask_BT).last_hidden_state @ weight[0] + bias
    return values_BT.gather(-1, mask_BT.sum(-1, keepdim=True) - 1)[:, 0].tolist(), rows


def trl_value_head(folder: Path, fast: PreTrainedTokenizerFast, template: Template) -> Result:
    """The value of TRL's `AutoModelForCausalLMWithValueHead` at the last token of the rendering, EOS where no token ends it."""
    backbone, weight, bias = _with_value_head(folder, fast, separate=False)
    rows = [_rendered_ids(fast, talk) for talk in TALKS]
    if template.jinja is not None and template.end not in template.slots[3]:
        rows = [[*row, fast.eos_token_id] for row in rows]
    with torch.no_grad():
        return [
            float((backbone(torch.tensor([row])).last_hidden_state[0, -1] @ weight[0]) + bias) for row in rows
        ], rows


def ours_full(folder: Path, fast: PreTrainedTokenizerFast, template: Template) -> Result:
    """A full checkpoint of `rewardserve train`, scored by transformers, TRL and OpenRLHF with its exported chat template."""
    start = _start(folder, fast)
    exporting.export_checkpoint(folder, start, PROBES)
    return _elsewhere(folder)


def ours_lora(folder: Path, fast: PreTrainedTokenizerFast, template: Template) -> Result:
    """A checkpoint of a LoRA adapter that is merged at export, scored like `_full`."""
    start = _start(folder, fast)
    adapt(start.network, MethodConfig(name="lora", rank=4))
    generator = torch.Generator().manual_seed(5)
    for name, parameter in start.network.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1
    exporting.export_checkpoint(folder, start, PROBES)
    return _elsewhere(folder)


def ours_heads(folder: Path, fast: PreTrainedTokenizerFast, template: Template) -> Result:
    """Heads alone over their base model; the reference is the full checkpoint of the same weights, scored elsewhere."""
    start = _start(folder, fast)
    exporting.export_heads(folder, start, str(start.folder))
    exporting.export_contract(folder, start, PROBES)
    whole = folder.parent / f"{folder.name}-whole"
    exporting.export_checkpoint(whole, start, PROBES)
    return _elsewhere(whole)


LAYOUTS: dict[str, Callable[[Path, PreTrainedTokenizerFast, Template], Result]] = {
    "transformers classifier": sequence_classification,
    "adapter of a classifier": adapter,
    "OpenRLHF": openrlhf,
    "LLaMA-Factory value head": llama_factory,
    "TRL value head": trl_value_head,
    "written by us, full": ours_full,
    "written by us, merged LoRA": ours_lora,
    "written by us, heads alone": ours_heads,
}


def _start(folder: Path, fast: PreTrainedTokenizerFast) -> Any:
    base = folder.parent / f"{folder.name}-sft"
    model = AutoModelForCausalLM.from_config(config_of(fast))
    randomize(model)
    model.save_pretrained(base)
    fast.save_pretrained(base)
    torch.manual_seed(3)
    start = read_backbone(str(base))
    start.network.heads.weight.data.normal_().mul_(0.3)
    start.network.eval()
    return start


def _with_value_head(folder: Path, fast: PreTrainedTokenizerFast, *, separate: bool) -> tuple[Any, torch.Tensor, float]:
    model = AutoModelForCausalLM.from_config(config_of(fast))
    randomize(model)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    weight = torch.randn(1, 32, generator=torch.Generator().manual_seed(2))
    head = {"v_head.summary.weight": weight, "v_head.summary.bias": torch.tensor([0.7])}
    tensors = {} if separate else load_file(folder / "model.safetensors")
    name = "value_head.safetensors" if separate else "model.safetensors"
    save_file({**tensors, **head}, folder / name, metadata={"format": "pt"})
    return AutoModel.from_pretrained(folder).eval(), weight, 0.7


def _rendered_ids(fast: PreTrainedTokenizerFast, talk: Talk) -> list[int]:
    """Text of TRL's `RewardTrainer` for a conversation, or plain text where there is no chat template."""
    prompt, response = talk
    if fast.chat_template is None:
        text = prompt + response
        return list(fast(text if text.endswith(fast.eos_token) else text + fast.eos_token)["input_ids"])
    return list(fast.apply_chat_template(_messages(talk), tokenize=True, return_dict=True)["input_ids"])


def _messages(talk: Talk) -> list[dict[str, str]]:
    return [{"role": "user", "content": talk[0]}, {"role": "assistant", "content": talk[1]}]


def _padded(rows: Sequence[Sequence[int]], side: str, value: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows))
    ids, mask = [], []
    for row in rows:
        padding = width - len(row)
        ids.append([value] * padding + list(row) if side == "left" else list(row) + [value] * padding)
        mask.append([0] * padding + [1] * len(row) if side == "left" else [1] * len(row) + [0] * padding)
    return torch.tensor(ids), torch.tensor(mask)


def _by_class(model: Any, fast: PreTrainedTokenizerFast) -> Result:
    """Scores of each row alone, and of all in one batch where the class recognises padding; both must agree."""
    rows = [_rendered_ids(fast, talk) for talk in TALKS]
    with torch.no_grad():
        alone = [float(model(input_ids=torch.tensor([row])).logits[0, 0]) for row in rows]
        if fast.pad_token_id is not None:
            ids_BT, mask_BT = _padded(rows, "right", fast.pad_token_id)
            together = model(input_ids=ids_BT, attention_mask=mask_BT).logits[:, 0]
            torch.testing.assert_close(together, torch.tensor(alone), atol=1e-5, rtol=0)
    return alone, rows


def _by_openrlhf(backbone: Any, weight: torch.Tensor, fast: PreTrainedTokenizerFast) -> Result:
    rows = []
    for prompt, response in TALKS:
        if fast.chat_template:
            turns = _messages((prompt, response))
            before = fast.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True)
            after = fast.apply_chat_template(turns, tokenize=False)[len(before) :]
        else:
            before, after = prompt, response
        text = (before + after).rstrip("\n")
        if not text.endswith(fast.eos_token):
            text += " " + fast.eos_token
        ids = fast(text, max_length=200, padding=False, truncation=True, add_special_tokens=False)["input_ids"]
        ids[-1] = fast.eos_token_id
        rows.append(ids)
    ids_BT, mask_BT = _padded(rows, "left", fast.pad_token_id or 0)
    eos_B1 = mask_BT.size(1) - 1 - mask_BT.long().fliplr().argmax(dim=1, keepdim=True)
    position_ids = mask_BT.long().cumsum(-1) - 1
    position_ids.masked_fill_(mask_BT == 0, 1)
    with torch.no_grad():
        hidden = backbone(ids_BT, attention_mask=mask_BT, position_ids=position_ids).last_hidden_state
    return (hidden @ weight[0]).gather(1, eos_B1).squeeze(1).tolist(), rows


def _elsewhere(folder: Path) -> Result:
    """An exported checkpoint in plain transformers, in TRL's two paths and in OpenRLHF's; all must agree."""
    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    fast = AutoTokenizer.from_pretrained(folder)
    scores, rows = _by_class(model, fast)
    # TRL's GRPOTrainer: rendered to text, tokenised without special tokens, padded on the right.
    texts = [fast.apply_chat_template(_messages(talk), tokenize=False) for talk in TALKS]
    batch = fast(text=texts, return_tensors="pt", padding=True, padding_side="right", add_special_tokens=False)
    with torch.no_grad():
        grpo = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    torch.testing.assert_close(grpo, torch.tensor(scores), atol=1e-5, rtol=0)
    rlhf, _ = _by_openrlhf(model.model, model.score.weight, fast)
    torch.testing.assert_close(torch.tensor(rlhf), torch.tensor(scores), atol=1e-5, rtol=0)
    return scores, rows


# -- the server's scores ----------------------------------------------------------------------------------------------


def served(folder: Path, fast: PreTrainedTokenizerFast, trained: Rows) -> Iterator[list[float]]:
    """Raw scores by every form of a sample and by both engines, always all rows in one batch.

    Texts and ids are rendered with the tokenizer of the base model, as a policy's trainer does; `trained` are the rows of the
    layout's own code.
    """
    for engine in ("packed", "padded"):
        loaded = load("torch", ModelSpec(str(folder), engine=engine, matmul_precision="highest"))
        encode = loaded.encode
        forms = [
            [Sample(prompt=prompt, response=response) for prompt, response in TALKS],
            [Sample(messages=(Message("user", prompt), Message("assistant", response))) for prompt, response in TALKS],
        ]
        if fast.chat_template is not None:
            forms.append([
                Sample(text=fast.apply_chat_template(_messages(talk), tokenize=False)) for talk in TALKS
            ])  # fmt: skip
        if fast.chat_template is not None and loaded.contract.tokenizes == "whole":
            forms.append([Sample(input_ids=tuple(_rendered_ids(fast, talk))) for talk in TALKS])
        forms.append([Sample(input_ids=tuple(row)) for row in trained])
        for samples in forms:
            rows = tuple(encode(sample).ids for sample in samples)
            yield [loaded.identity.raw(heads) for heads in loaded.scorer.score(TokenBatch(rows)).rows]


def difference(layout: str, template: str, pad: str) -> float:
    """The largest difference between a served score and that of the layout's own code."""
    known = TEMPLATES[template]
    fast = tokenizer_of(known, pad)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "rm"
        expected, rows = LAYOUTS[layout](folder, tokenizer_of(known, pad), known)
        if layout.startswith("written by us") and template == "ends in text":
            # The last newline may be the template's or the response's, which no server can decide: the exported template adds EOS.
            fast.chat_template = (folder / "chat_template.jinja").read_text(encoding="utf-8")
        found = [abs(a - b) for scores in served(folder, fast, rows) for a, b in zip(scores, expected, strict=True)]
    return max(found)


def combinations() -> Iterator[tuple[str, str, str]]:
    """Every layout with every template and every pad token that differs from the others."""
    for layout in LAYOUTS:
        for name, template in TEMPLATES.items():
            for pad in PADS:
                if pad != "the end token" or template.end != template.eos:
                    yield layout, name, pad


# -- the page ---------------------------------------------------------------------------------------------------------

BEGIN, END = "<!-- table: written by `make scores` -->", "<!-- end of the table -->"


def row_of(layout: str, template: str, pad: str, worst: float) -> str:
    """One line of the table."""
    return f"| {layout} | {template} | {pad} | {worst:.0e} |"


def table() -> str:
    """The whole table in Markdown; takes some minutes."""
    lines = ["| layout | chat template | pad token | largest difference |", "|---|---|---|---|"]
    for layout, template, pad in combinations():
        lines.append(row_of(layout, template, pad, difference(layout, template, pad)))
        print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    """Replace the table of the page."""
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}")


if __name__ == "__main__":
    main()

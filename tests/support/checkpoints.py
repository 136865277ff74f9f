"""Checkpoints on disk in our layout and others, with tiny random weights, written by the code of their trainers or by hand."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification

from rewardserve.model.calibration import Calibration
from rewardserve.model.checkpoint import ReadOptions, read, read_backbone, write, write_calibration, write_contract
from rewardserve.model.conversation import Sample
from rewardserve.model.hidden_reference import HiddenReference
from rewardserve.model.network import RewardNetwork
from rewardserve.training.batches import scoring
from rewardserve.training.evaluation import calibrate, hidden_statistics
from tests.support.tiny import CHATML, randomize, tiny_config, tiny_tokenizer

PROBES = [Sample(prompt=f"question {i} " * (1 + i % 3), response="an answer " * (1 + i % 5)) for i in range(16)]
CALIBRATION = Calibration(mean=0.2, std=1.5, temperature=0.8, cap_low=-3.0, cap_high=3.0, n=100)


def language_model(
    folder: Path,
    architecture: str = "llama",
    *,
    template: str | None = CHATML,
    shape: Mapping[str, Any] | None = None,
    **tokenizer: Any,
) -> Path:
    """An SFT model: a causal language model with a chat template and no value head."""
    fast = tiny_tokenizer(template, **tokenizer)
    model = AutoModelForCausalLM.from_config(tiny_config(architecture, len(fast), **(shape or {})))
    randomize(model)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def reward_model(
    folder: Path,
    architecture: str = "llama",
    *,
    heads: dict[str, float] | None = None,
    contract: bool = True,
    template: str | None = CHATML,
    seed: int = 0,
    **tokenizer: Any,
) -> RewardNetwork:
    """Our layout, as training writes it. Another `seed`: another head."""
    sft = language_model(folder.parent / f"{folder.name}-sft", architecture, template=template, **tokenizer)
    names = heads or {"score": 1.0}
    torch.manual_seed(seed)
    checkpoint = read_backbone(str(sft), head_names=tuple(names), head_weights=tuple(names.values()))
    checkpoint.network.heads.weight.data.normal_()
    write(folder, checkpoint.network.eval(), checkpoint.tokenizer, policy=checkpoint.policy, calibration=CALIBRATION)
    if contract:
        write_contract(folder, probes=PROBES)
    return checkpoint.network


def hidden_reference(folder: Path, rows: Sequence[Sequence[int]] = ()) -> HiddenReference:
    """Add the hidden reference of these rows to an existing checkpoint, as `rewardserve calibrate` does.

    Without rows: random ones.
    """
    network = read(str(folder), ReadOptions(dtype="float32")).network
    generator = torch.Generator().manual_seed(11)
    rows = rows or [torch.randint(5, 300, (n % 40 + 2,), generator=generator).tolist() for n in range(240)]
    hidden_ND = scoring.last_hidden(network, rows, pad_id=0, batch_tokens=1024)
    reference = hidden_statistics.fit(hidden_ND.double().numpy())
    distance_N = reference.log_distance(hidden_ND).double().numpy()
    calibration = Calibration.load(folder) or CALIBRATION
    write_calibration(folder, calibrate.with_distance(calibration, reference.digest, distance_N), reference)
    return reference


def sequence_classifier(
    folder: Path, architecture: str = "llama", n_labels: int = 1, *, shape: Mapping[str, Any] | None = None
) -> Any:
    """The layout of Skywork, TRL and others: `XForSequenceClassification`, saved by transformers."""
    fast = tiny_tokenizer()
    config = tiny_config(architecture, **{"vocab_size": len(fast), "num_labels": n_labels, **(shape or {})})
    model = AutoModelForSequenceClassification.from_config(config)
    randomize(model)
    model.save_pretrained(folder)
    fast.save_pretrained(folder)
    return model.eval()


def openrlhf(folder: Path, prefix: str = "value_head") -> Any:
    """OpenRLHF's layout: its `RewardModel` saves `<prefix>.weight`, `mean` and `std`."""
    model = sequence_classifier(folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[f"{prefix}.weight"] = tensors.pop("score.weight")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    edit_json(folder / "config.json", architectures=["RewardModel"], value_head_prefix=prefix, mean=0.3, std=2.5)
    return model


def value_head(folder: Path, *, separate: bool) -> tuple[Any, torch.Tensor, torch.Tensor]:
    """A causal LM with `v_head.summary`: in a separate file (LLaMA-Factory) or among the weights (TRL)."""
    language_model(folder)
    weight, bias = torch.randn(1, 32), torch.tensor([0.7])
    head = {"v_head.summary.weight": weight, "v_head.summary.bias": bias}
    if separate:
        save_file(head, folder / "value_head.safetensors", metadata={"format": "pt"})
    else:
        tensors = load_file(folder / "model.safetensors")
        save_file({**tensors, **head}, folder / "model.safetensors", metadata={"format": "pt"})
    return AutoModel.from_pretrained(folder).eval(), weight, bias


def merge_newlines(folder: Path) -> None:
    """Give the tokenizer a token of two newlines, in place of its last merge: then the ids depend on where a text is cut."""
    path = folder / "tokenizer.json"
    whole = json.loads(path.read_text())
    model = whole["model"]
    model["vocab"]["ĊĊ"] = model["vocab"].pop("".join(model["merges"].pop()))
    model["merges"].append(["Ċ", "Ċ"])
    path.write_text(json.dumps(whole))


def edit_json(path: Path, **changes: Any) -> None:
    """Overwrite some fields of a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_tensor(path: Path, name: str, change: Any) -> None:
    """Replace one tensor of a safetensors file by `change(tensor)`; metadata is kept."""
    from safetensors import safe_open

    with safe_open(str(path), framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(path)
    tensors[name] = change(tensors[name])
    save_file(tensors, path, metadata=metadata)

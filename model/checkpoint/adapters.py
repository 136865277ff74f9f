"""PEFT adapters: folded into the weights of their base model, backbone and value head each for itself.

PEFT does the arithmetic (LoRA, its scaling, DoRA); the task of an adapter, which would make it build a classifier, is left out.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.checkpoint import weights
from model.checkpoint.record import CheckpointError

ADAPTER_CONFIG = "adapter_config.json"
_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_HEAD = "base_model.model.score."


def adapter_files(folder: Path) -> list[Path]:
    """The tensors of an adapter; empty where there are none."""
    return [folder / name for name in _FILES if (folder / name).is_file()][:1]


def merge_backbone(backbone: Any, folder: Path) -> Any:
    """The backbone with an adapter folded into its weights. Raise `CheckpointError`."""
    names = _names(folder)
    if not names:
        raise CheckpointError(f"{folder} has an {ADAPTER_CONFIG} but no adapter_model.safetensors")
    if all(name.startswith(_HEAD) for name in names):
        return backbone
    inside = f"base_model.model.{backbone.base_model_prefix}."
    model = _Holder(backbone) if any(n.startswith(inside) for n in names) else backbone
    merged = _merged(model, folder, _config(folder), "its base model")
    return getattr(merged, backbone.base_model_prefix) if isinstance(merged, _Holder) else merged


def head_tensors(folder: Path) -> list[str]:
    """The tensors with which an adapter changes the value head of its base model."""
    return sorted(n for n in _names(folder) if n.startswith(_HEAD) and n.removeprefix(_HEAD) not in ("weight", "bias"))


def merge_head(weight_HD: Tensor, bias_H: Tensor | None, folder: Path) -> tuple[Tensor, Tensor | None]:
    """The value head of the base model with what an adapter changes of it. Raise `CheckpointError`."""
    n_heads, width = weight_HD.shape
    holder = nn.Module()
    holder.score = nn.Linear(width, n_heads, bias=bias_H is not None)
    with torch.no_grad():
        holder.score.weight.copy_(weight_HD)
        if bias_H is not None:
            holder.score.bias.copy_(bias_H)
    config = _config(folder)
    config.target_modules = ["score"]
    for part in ("exclude_modules", "layers_to_transform", "layers_pattern", "target_parameters"):
        if hasattr(config, part):
            setattr(config, part, None)  # they choose among the layers of the backbone
    merged = _merged(holder, folder, config, f"the value head of its base model ({', '.join(head_tensors(folder))})")
    bias = merged.score.bias
    return merged.score.weight.detach(), None if bias is None else bias.detach()


def _merged(model: nn.Module, folder: Path, config: Any, what: str) -> Any:
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            # Ranks and scales may be given for layers of the other half: backbone and head are merged each for itself.
            warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys", RuntimeWarning)
            return PeftModel.from_pretrained(model, str(folder), config=config).merge_and_unload(safe_merge=True)
    except Exception as error:
        raise CheckpointError(f"the adapter in {folder} does not fit {what}: {error}") from error


def _config(folder: Path) -> Any:
    from peft import PeftConfig

    lora = PeftConfig.from_pretrained(str(folder))
    lora.task_type, lora.modules_to_save = None, None  # a plain wrapper; a whole head is read by us
    if getattr(lora, "megatron_config", None):
        lora.megatron_config = None  # peft would import whatever module megatron_core names
    return lora


def _names(folder: Path) -> Iterable[str]:
    return [name for path in adapter_files(folder) for name in weights.tensor_names(path)]


class _Holder(nn.Module):
    """Adapters of `XForSequenceClassification` and `XForCausalLM` name their modules one level further in."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.config = backbone.config
        self.base_model_prefix = backbone.base_model_prefix
        setattr(self, backbone.base_model_prefix, backbone)

"""PEFT adapters, merged into the weights of their base model: the backbone and the value head separately.

PEFT does the arithmetic (LoRA, its scaling, DoRA); the task type of an adapter is cleared, or PEFT would build a classifier.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rewardserve.model.checkpoint import weights
from rewardserve.model.checkpoint.record import CheckpointError

ADAPTER_CONFIG = "adapter_config.json"
_FILES = ("adapter_model.safetensors", "adapter_model.bin")
_HEAD = "base_model.model.score."
_MAX_DIFFERENCE = 1e-3
_MAX_DIFFERENCE_REDUCED = 0.1
"""Largest relative difference between the merged and the unmerged output, for the median token, in half precision. Merged
weights are rounded to the dtype of the model, and a mixture of experts may then route a token to another expert."""


def adapter_files(folder: Path) -> list[Path]:
    """The weights file of an adapter; empty where there is none."""
    return [folder / name for name in _FILES if (folder / name).is_file()][:1]


def unread_adapter_files(folder: Path) -> list[Path]:
    """The weights files of an adapter that PEFT ignores because it prefers another one."""
    return [folder / name for name in _FILES if (folder / name).is_file()][1:]


def refuse_shared_layers(folder: Path) -> None:
    """Raise `CheckpointError` for an adapter whose layers share weights of the base model: it cannot be merged into them."""
    if json.loads((folder / ADAPTER_CONFIG).read_text()).get("layer_replication"):
        raise CheckpointError(
            f"{folder / ADAPTER_CONFIG} has layer_replication: several layers share one weight of the base model, and each has "
            "a separate low-rank matrix, so PEFT merges them wrongly (peft issue 1707). Copy the layers of the base model "
            "into a new model, move the adapter to it, and merge there."
        )


def merge_backbone(backbone: Any, folder: Path) -> Any:
    """Merge an adapter into the weights of the backbone. Raise `CheckpointError`."""
    names = _names(folder)
    if not names:
        raise CheckpointError(f"{folder} has an {ADAPTER_CONFIG} but no adapter_model.safetensors")
    if all(name.startswith(_HEAD) for name in names):
        return backbone
    inside = f"base_model.model.{backbone.base_model_prefix}."
    model = _Holder(backbone) if any(n.startswith(inside) for n in names) else backbone
    n_ids = backbone.get_input_embeddings().num_embeddings  # not available while an adapter wraps them
    merged = _merged(model, folder, _config(folder), "its base model", partial(_hidden, backbone, n_ids))
    return getattr(merged, backbone.base_model_prefix) if isinstance(merged, _Holder) else merged


def grow_embeddings(backbone: Any, folder: Path) -> None:
    """Resize the embeddings of the backbone to those in the adapter, whose trainer may have added tokens and saved the table."""
    table = backbone.get_input_embeddings()
    path = next((name for name, module in backbone.named_modules() if module is table), "")
    wanted = [name for name in _names(folder) if re.search(rf"(^|\.){re.escape(path)}(\.base_layer)?\.weight$", name)]
    for shape in weights.shapes(adapter_files(folder), wanted).values():
        if shape[0] > table.num_embeddings:
            backbone.resize_token_embeddings(shape[0], mean_resizing=False)


def head_tensors(folder: Path) -> list[str]:
    """Names of the tensors with which an adapter changes the value head of its base model."""
    return sorted(n for n in _names(folder) if n.startswith(_HEAD) and n.removeprefix(_HEAD) not in ("weight", "bias"))


def merge_head(weight_HD: Tensor, bias_H: Tensor | None, folder: Path) -> tuple[Tensor, Tensor | None]:
    """Merge an adapter into the value head of its base model. Raise `CheckpointError`."""
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
            setattr(config, part, None)  # these options select layers of the backbone
    target = f"the value head of its base model ({', '.join(head_tensors(folder))})"
    merged = _merged(holder, folder, config, target, lambda: holder.score(torch.eye(width)))
    bias = merged.score.bias
    return merged.score.weight.detach(), None if bias is None else bias.detach()


@torch.no_grad()
def _merged(model: nn.Module, folder: Path, config: Any, target: str, output: Callable[[], Tensor]) -> Any:
    """Merge the adapter into the model. `output` runs the model, `(n, D)`, before and after, for comparison.

    `target` names the model in an error.
    """
    from peft import PeftModel

    try:
        with warnings.catch_warnings():
            # Ranks and scales may be given for layers of the other part: backbone and head are merged separately.
            warnings.filterwarnings("ignore", "The following (rank|alpha)_pattern keys", RuntimeWarning)
            adapted = PeftModel.from_pretrained(model, str(folder), config=config).eval()
            unmerged_ND = output().double()
            merged = adapted.merge_and_unload(safe_merge=True)
            merged_ND = output().double()
    except Exception as error:
        raise CheckpointError(f"the adapter in {folder} does not fit {target}: {error}") from error
    is_finite_N = unmerged_ND.isfinite().all(
        dim=-1
    )  # the other tokens overflow with the adapter too: their scores are errors
    if not bool(is_finite_N.any()):
        return merged
    merged_ND, unmerged_ND = merged_ND[is_finite_N], unmerged_ND[is_finite_N]
    size_N = unmerged_ND.norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
    difference = float(((merged_ND - unmerged_ND).norm(dim=-1) / size_N).median())
    dtype = next(model.parameters()).dtype
    bound = _MAX_DIFFERENCE if dtype in (torch.float32, torch.float64) else _MAX_DIFFERENCE_REDUCED
    if not difference <= bound:  # NaN too
        raise CheckpointError(
            f"the adapter in {folder} cannot be merged into {target}: the outputs merged and unmerged differ by "
            f"{difference:.2%} (allowed: {bound:.2%} in {str(dtype).removeprefix('torch.')}). Merge it with the version of PEFT "
            "that trained it, compare the scores, and serve the merged model."
        )
    return merged


def _hidden(backbone: Any, n_ids: int) -> Tensor:
    """Last hidden states of a few short rows, `(n, D)`."""
    ids_BT = torch.randint(n_ids, (4, 12), generator=torch.Generator().manual_seed(0))
    ids_BT = ids_BT.to(next(backbone.parameters()).device)
    hidden_BTD: Tensor = backbone(input_ids=ids_BT, use_cache=False).last_hidden_state
    return hidden_BTD.flatten(0, 1)


def _config(folder: Path) -> Any:
    from peft import PeftConfig

    lora = PeftConfig.from_pretrained(str(folder))
    lora.task_type, lora.modules_to_save = None, None  # a plain wrapper; `heads` reads a whole head
    if getattr(lora, "megatron_config", None):
        lora.megatron_config = None  # PEFT would import the module that megatron_core names
    return lora


def _names(folder: Path) -> Iterable[str]:
    return [name for path in adapter_files(folder) for name in weights.tensor_names(path)]


class _Holder(nn.Module):
    """Module around a backbone: adapters of `XForSequenceClassification` and `XForCausalLM` have names one level deeper."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.config = backbone.config
        self.base_model_prefix = backbone.base_model_prefix
        setattr(self, backbone.base_model_prefix, backbone)

"""Readers of the value head, one for each layout. A missing head is an error; none is ever initialised here."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rewardserve.model.checkpoint import weights
from rewardserve.model.checkpoint.adapters import ADAPTER_CONFIG, adapter_files, head_tensors, merge_head
from rewardserve.model.checkpoint.record import CheckpointError
from rewardserve.model.network import SINGLE_HEAD
from rewardserve.model.scorer import DISTANCE

HEADS_FILE = "reward_heads.safetensors"
_VALUE_HEAD = "v_head.summary"
_VALUE_HEAD_FILES = ("value_head.safetensors", "value_head.bin")


@dataclass(frozen=True, slots=True)
class ValueHeads:
    """Value heads of a checkpoint: weights `(H, D)`, biases `(H,)`, names and the weight of each in the raw score.

    `tensors` names the checkpoint's tensors that they were read from; `left_out` those that look like a head and are not
    loaded, which `notes` explain.
    """

    weight_HD: Tensor
    bias_H: Tensor | None = None
    names: tuple[str, ...] = SINGLE_HEAD
    weights: tuple[float, ...] | None = None
    tensors: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def find_head(folder: Path, base: Path, config: Any, width: int) -> tuple[str, ValueHeads]:
    """Return the layout and its value head. Raise `CheckpointError` if there is no trained one.

    `base`: the folder of the base model, which is `folder` unless this is an adapter or bare heads. `width`: width of
    the backbone's last hidden state.
    """
    for form, reader in HEAD_READERS.items():
        head = _adapter(folder, config, base) if reader is _adapter else reader(folder, config)
        if head is not None:
            return form, _checked(_alone(form, head, folder), width, folder)
    raise CheckpointError(
        f"{folder} has no value head (layouts tried: {', '.join(HEAD_READERS)}). A freshly initialised one would score noise. "
        "If this is a language model, train a reward model from it: rewardserve train --config FILE --set model.path=..."
    )


def value_head_files(folder: Path) -> list[Path]:
    """The separate file of a value head; empty where there is none. Raise `CheckpointError` for two files."""
    found = [folder / name for name in _VALUE_HEAD_FILES if (folder / name).is_file()]
    if len(found) > 1:
        raise CheckpointError(
            f"{folder} has two value heads: {found[0].name} and {found[1].name}. Which of them was trained is not known: delete "
            "the other one."
        )
    return found


def _alone(form: str, head: ValueHeads, folder: Path) -> ValueHeads:
    """Add a note on other heads that the layout's class ignores. Raise `CheckpointError` where one may be the trained one."""
    files = value_head_files(folder)
    inside = _linear(weights.weight_files(folder), _VALUE_HEAD)
    if files and form != "llama_factory":
        raise CheckpointError(
            f"{folder} has two value heads: {files[0].name}, and {', '.join(head.tensors)} of the layout {form}. Which of them was "
            "trained is not known: delete the other one, and its fields in config.json."
        )
    if files and inside is not None and not _equal(head, inside):
        raise CheckpointError(
            f"{folder} has two value heads: {files[0].name}, and {_VALUE_HEAD} among the weights. Which of them was trained is not "
            "known: delete the other one."
        )
    if inside is None or form in ("llama_factory", "trl_value_head"):
        return head
    left_out = (
        f"{', '.join(inside.tensors)}: a second head, left out because the class of the layout {form} does not load it"
    )
    return replace(head, notes=(*head.notes, left_out), left_out=(*head.left_out, *inside.tensors))


def _equal(one: ValueHeads, other: ValueHeads) -> bool:
    zero = torch.zeros(1)
    biases = [zero if head.bias_H is None else head.bias_H for head in (one, other)]
    return bool(torch.equal(one.weight_HD, other.weight_HD) and torch.equal(*biases))


def base_of_heads(folder: Path) -> str | None:
    """Base model of the bare heads in this folder; None where the folder has no such heads."""
    path = folder / HEADS_FILE
    return _metadata(path).get("base_model_name_or_path") if path.is_file() else None


def layers_of_heads(folder: Path) -> int | None:
    """Number of first layers of the base model that the bare heads in this folder are over; None: all of them, or no such heads.

    Raise `CheckpointError` where it is no number.
    """
    path = folder / HEADS_FILE
    given = _metadata(path).get("base_model_layers") if path.is_file() else None
    if given is not None and not given.isdecimal():
        raise CheckpointError(f"{path}: base_model_layers is {given!r}, which is no number of layers")
    return None if given is None else int(given)


def _metadata(path: Path) -> dict[str, str]:
    return weights.metadata(path)


def _own(folder: Path, config: Any) -> ValueHeads | None:
    path = folder / HEADS_FILE
    if not path.is_file():
        return None
    listed = json.loads(_metadata(path).get("reward_heads", "[]"))
    stored = {name: tensor.float() for name, tensor in weights.read_all([path]).items()}
    names = tuple(str(h["name"]) for h in listed)
    lost = [n for n in names if n not in stored]
    if lost or not names:
        raise CheckpointError(f"{path}: the heads {lost or 'and their list'} are missing from the file")
    head = ValueHeads(
        torch.stack([stored[n] for n in names]),
        None,
        names,
        tuple(float(h["weight"]) for h in listed),
        ("score.weight",),
    )
    _same_as_score(head, folder)
    return head


def _same_as_score(head: ValueHeads, folder: Path) -> None:
    """Raise `CheckpointError` unless `score.weight`, which other engines read, is the weighted sum of the heads."""
    score = weights.find_tensors(weights.weight_files(folder), ("score.weight",)).get("score.weight")
    if score is None:
        return
    combined_1D = torch.tensor(head.weights, dtype=torch.float32)[None] @ head.weight_HD
    if not torch.allclose(score.float(), combined_1D, rtol=1e-2 if score.dtype != torch.float32 else 1e-5, atol=1e-6):
        raise CheckpointError(
            f"{folder}: score.weight is not the weighted sum of the heads in {HEADS_FILE}. One of the two was changed: restore "
            "both files of training, or export the checkpoint again."
        )


def _sequence_classification(folder: Path, config: Any) -> ValueHeads | None:
    if not any(a.endswith("ForSequenceClassification") for a in config.architectures or ()):
        return None
    found = _linear(weights.weight_files(folder), "score")
    if found is None:
        raise CheckpointError(
            f"{folder} is of the class {config.architectures[0]} but has no score.weight: its head would be freshly initialised. "
            "Save the model together with its head."
        )
    return _named(_as_classifier(found, config), config)


def _as_classifier(head: ValueHeads, config: Any) -> ValueHeads:
    """The head of transformers' class: a bias for which that class has no place is left out, with a note."""
    if head.bias_H is None or _has_bias(config):
        return head
    return _without_bias(head, "transformers' sequence classifier")


def _without_bias(head: ValueHeads, owner: str) -> ValueHeads:
    if head.bias_H is None:
        return head
    name = next(name for name in head.tensors if name.endswith("bias"))
    values = ", ".join(f"{value:.6g}" for value in head.bias_H.tolist())
    return replace(
        head,
        bias_H=None,
        tensors=tuple(each for each in head.tensors if each != name),
        left_out=(*head.left_out, name),
        notes=(*head.notes, f"{name} ({values}) is left out: {owner} has no such tensor, and scores without it"),
    )


def _has_bias(config: Any) -> bool:
    """Whether the class of transformers that loads this model as a classifier has a `score.bias`."""
    from transformers import AutoModelForSequenceClassification

    try:
        with torch.device("meta"):
            model = AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)
    except ValueError as error:  # transformers has no such class
        raise CheckpointError(
            "the checkpoint has a score.bias, and transformers has no sequence classifier of this architecture, so it is not known "
            f"whether the score includes the bias: {error}"
        ) from error
    return any(name == "score.bias" for name, _ in model.named_parameters())


def _named(head: ValueHeads, config: Any) -> ValueHeads:
    """Name the heads. Several labels are reward heads only if the checkpoint has a weight for each."""
    n_labels = len(head.weight_HD)
    if n_labels == 1 or head.weight_HD.ndim != 2:
        return head
    names = tuple(str(config.id2label[i]) for i in range(n_labels))
    counts = getattr(config, "reward_head_weights", None)
    if counts is None:
        raise CheckpointError(
            f"the checkpoint has {n_labels} labels ({', '.join(names[:4])}) and no weight for each: it may be a classifier. If "
            "they are reward heads, set reward_head_weights in config.json, one number a label."
        )
    ordered = [counts[n] for n in names] if isinstance(counts, dict) else counts
    return replace(head, names=names, weights=tuple(map(float, ordered)))


def _openrlhf(folder: Path, config: Any) -> ValueHeads | None:
    prefix = getattr(config, "value_head_prefix", None)
    if not prefix:
        return None
    found = _linear(weights.weight_files(folder), prefix)
    if found is None:
        raise CheckpointError(f"config.json has value_head_prefix={prefix!r}, but no file has {prefix}.weight")
    return _without_bias(found, "OpenRLHF's reward model")


def _llama_factory(folder: Path, config: Any) -> ValueHeads | None:
    """`v_head.summary` in a separate file."""
    return _linear(value_head_files(folder), _VALUE_HEAD)


def _trl_value_head(folder: Path, config: Any) -> ValueHeads | None:
    """`v_head.summary` among the weights."""
    return _linear(weights.weight_files(folder), _VALUE_HEAD)


def _adapter(folder: Path, config: Any, base: Path) -> ValueHeads | None:
    """The head among PEFT's `modules_to_save`, or else that of the base model, adapted or not."""
    whole = _linear(adapter_files(folder), "base_model.model.score")
    adapted = head_tensors(folder)
    if whole is not None and adapted:
        raise CheckpointError(
            f"{folder} has a value head (base_model.model.score.weight) and changes of one ({', '.join(adapted)}): which of them "
            "training used is not known. Merge the adapter with PEFT, and save the merged model."
        )
    if whole is not None or not (folder / ADAPTER_CONFIG).is_file():
        return whole and _named(_as_classifier(whole, config), config)
    is_classifier = any(a.endswith("ForSequenceClassification") for a in config.architectures or ())
    found = _linear(weights.weight_files(base), "score") if is_classifier else None
    if found is None:
        if not adapted:
            return None
        raise CheckpointError(
            f"{folder} adapts the value head ({', '.join(adapted)}), and its base model {base} has no score.weight: in training "
            "that layer began with random weights, which no file holds. Train again with the head saved whole (PEFT: "
            "task_type=SEQ_CLS, or modules_to_save=[score] without score in target_modules), or from a base model with a head."
        )
    found = _as_classifier(found, config)
    if adapted:
        weight_HD, bias_H = merge_head(found.weight_HD, found.bias_H, folder)
        found = replace(found, weight_HD=weight_HD, bias_H=bias_H, tensors=(*found.tensors, *adapted))
    return _named(found, config)


HEAD_READERS: dict[str, Callable[..., ValueHeads | None]] = {
    "rewardserve": _own,
    "adapter": _adapter,
    "openrlhf": _openrlhf,  # its key in config.json names the trainer, also where the architecture was renamed
    "sequence_classification": _sequence_classification,
    "llama_factory": _llama_factory,
    "trl_value_head": _trl_value_head,
}


def _linear(files: list[Path], name: str) -> ValueHeads | None:
    found = weights.find_tensors(files, (f"{name}.weight", f"{name}.bias"))
    if f"{name}.weight" not in found:
        return None
    bias = found.get(f"{name}.bias")
    return ValueHeads(
        found[f"{name}.weight"].float(), None if bias is None else bias.float(), tensors=tuple(sorted(found))
    )


def _checked(head: ValueHeads, width: int, folder: Path) -> ValueHeads:
    if head.weight_HD.ndim != 2 or head.weight_HD.shape[1] != width:
        shape = tuple(head.weight_HD.shape)
        raise CheckpointError(
            f"{folder}: the value head has shape {shape}, the backbone's last hidden state is {width} wide"
        )
    if DISTANCE in head.names:
        raise CheckpointError(
            f"{folder}: a head is called {DISTANCE!r}, the server's name for the distance of a hidden state from those of the "
            "calibration. Give the head another name."
        )
    if not bool(torch.isfinite(head.weight_HD).all()):
        raise CheckpointError(f"{folder}: the value head holds NaN or infinity")
    if not bool(head.weight_HD.any()):
        raise CheckpointError(f"{folder}: the value head is all zeros: it was never trained")
    return head

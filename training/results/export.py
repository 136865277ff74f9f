"""Export of a finished checkpoint: weights, calibration, contract with golden probes, adapter, report data.

Uses the layout of `rewardserve.model.checkpoint` through its two functions; independent of the optimizer.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from rewardserve.model.checkpoint import (
    Checkpoint,
    CheckpointError,
    ReadOptions,
    choose_pad,
    exported_template,
    exported_tokenizer,
    write,
    write_calibration,
    write_contract,
    write_heads,
)
from rewardserve.model.contract import N_PROBES, InvalidSampleFile, ScoringContract, read_samples
from rewardserve.model.conversation import Sample
from rewardserve.model.text.text_files import TextDecodeError
from rewardserve.training.dataset.sequences import FeedbackTable
from rewardserve.training.loop.methods import merge
from rewardserve.training.settings.validation import ConfigError

REPORT = "training_report.json"
_VERSIONS = ("torch", "transformers", "tokenizers", "peft", "accelerate", "datasets", "numpy", "rewardserve")
_ADAPTER_WEIGHTS = "adapter_model.safetensors"


def export_checkpoint(folder: Path, trained: Checkpoint, probes: Sequence[Sample]) -> ScoringContract:
    """Write the checkpoint with merged adapters, and its contract; the probe scores come from the checkpoint read back."""
    merge(trained.network)
    write(
        folder,
        trained.network,
        trained.tokenizer,
        policy=trained.policy,
        calibration=trained.calibration,
        hidden=trained.hidden,
    )
    return export_contract(folder, trained, probes)


def has_adapter(trained: Checkpoint) -> bool:
    """Whether the backbone has unmerged low-rank adapters."""
    import peft

    return isinstance(trained.network.backbone, peft.PeftModel)


def export_adapter(folder: Path, trained: Checkpoint, base: str) -> None:
    """Write the LoRA adapter with its head over `base`, in peft's sequence-classification layout.

    Call it before `export_checkpoint`, which merges the adapter; `export_contract` completes the folder.
    """
    backbone: Any = trained.network.backbone
    backbone.save_pretrained(str(folder))
    # The adapters are on the bare backbone; a classification model has the backbone one name further in.
    inner = "base_model.model."
    outer = f"{inner}{backbone.get_base_model().base_model_prefix}."
    tensors = {n.replace(inner, outer, 1): t for n, t in load_file(folder / _ADAPTER_WEIGHTS).items()}
    head_1D, _ = trained.network.combined_head()
    tensors[f"{inner}score.weight"] = head_1D.float().cpu().contiguous()
    save_file(tensors, folder / _ADAPTER_WEIGHTS, metadata={"format": "pt"})
    config = json.loads((folder / "adapter_config.json").read_text())
    config |= {"task_type": "SEQ_CLS", "modules_to_save": ["score"], "base_model_name_or_path": base}
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    write_heads(folder, trained.network)
    tokenizer = exported_tokenizer(trained.tokenizer, trained.policy)
    choose_pad(tokenizer, trained.policy)
    tokenizer.save_pretrained(folder)
    write_calibration(folder, trained.calibration, trained.hidden)


def export_heads(folder: Path, trained: Checkpoint, base: str, n_layers: int | None = None) -> None:
    """Write the heads alone over `base`, or over its first `n_layers`, and the chat template; the base has the tokenizer.

    `export_contract` completes it.
    """
    template = exported_template(trained.tokenizer, trained.policy, trained.tokenizer)
    write_heads(folder, trained.network, base=base, n_layers=n_layers, template=template)
    write_calibration(folder, trained.calibration, trained.hidden)


def export_contract(folder: Path, trained: Checkpoint, probes: Sequence[Sample]) -> ScoringContract:
    """Write the contract of a folder under the policy of training. Raise `CheckpointError` if it cannot be read back."""
    policy = trained.policy
    written = write_contract(
        folder,
        probes=probes,
        max_tokens=policy.max_tokens,
        truncation=policy.truncation,
        options=ReadOptions(
            allow_pickle=True,  # for the base: training has already read it this way
            ignore_checkpoint_code=True,
            template_date=policy.template_date,
            ending="template",  # the exported template ends at the reading position
            reads_at="last",
        ),
        device=str(trained.network.device),
    )
    encode = trained.encoder
    for i, (sample, probe) in enumerate(zip(probes, written.probes, strict=True)):
        if encode(sample).ids != probe.ids:
            raise CheckpointError(
                f"{folder}: probe {i} has different tokens after the checkpoint is read back than in training. The exported "
                "tokenizer or chat template differs from the encoding of training; please report the model's name."
            )
    return written


def choose_probes(table: FeedbackTable, n: int = N_PROBES) -> list[Sample]:
    """Choose `n` held-out samples whose lengths are spread evenly from the shortest to the longest."""
    lengths = [len(s.ids) for s in table.sequences]
    by_length = sorted(range(len(lengths)), key=lengths.__getitem__)
    if len(by_length) <= n:
        return [table.sequences[number].sample for number in by_length]
    return [table.sequences[by_length[round(i / (n - 1) * (len(by_length) - 1))]].sample for i in range(n)]


def read_probes(path: Path) -> list[Sample]:
    """Read samples that may be shipped: one JSON object a line, as on the wire. Raise `ConfigError`."""
    try:
        probes = read_samples(path)
    except InvalidSampleFile as error:
        raise ConfigError(f"export.probes: {error}") from error
    except (OSError, TextDecodeError) as error:
        raise ConfigError(f"export.probes: {path} holds no samples: {error}") from error
    if not probes:
        raise ConfigError(f"export.probes: {path} holds no samples: it is empty")
    return probes


def write_report(folder: Path, report: dict[str, Any]) -> None:
    """Write `training_report.json` beside the weights."""
    (folder / REPORT).write_text(json.dumps(report, indent=1, default=str) + "\n")


def without_folders(report: Any, paths: Iterable[Path]) -> Any:
    """The report without folders of this machine: a checkpoint may be published. `paths`: those that it may name."""
    folders = {str(path) for path in (Path.cwd(), Path.home(), *(path.absolute().parent for path in paths))} - {"/"}
    longest_first = "|".join(map(re.escape, sorted(folders, key=len, reverse=True)))
    inside = re.compile(rf"(?<![\w./-])(?:{longest_first})/")

    def clean(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {clean(key): clean(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [clean(each) for each in value]
        if not isinstance(value, str):
            return value
        text = inside.sub("", value)
        return Path(text).name if Path(text).is_absolute() and "\n" not in text else text

    return clean(report)


def paths_in(recipe: Any) -> Iterator[Path]:
    """Absolute paths among the settings of a recipe."""
    if isinstance(recipe, Mapping):
        recipe = list(recipe.values())
    if isinstance(recipe, list | tuple):
        for each in recipe:
            yield from paths_in(each)
    elif isinstance(recipe, str) and Path(recipe).is_absolute():
        yield Path(recipe)


def versions() -> dict[str, str]:
    """Versions of the packages that made these weights."""
    return {name: found for name in _VERSIONS if (found := _version(name))}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except ImportError:
        return None

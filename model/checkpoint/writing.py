"""Write the one layout that transformers, TRL, vLLM, SGLang and OpenRLHF load unchanged, and its contract."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from rewardserve.model.calibration import Calibration
from rewardserve.model.checkpoint.exporting import choose_pad, exported_tokenizer
from rewardserve.model.checkpoint.heads import HEADS_FILE
from rewardserve.model.checkpoint.reading import CHAT_TEMPLATE, read
from rewardserve.model.checkpoint.record import READ_DEFAULTS, CheckpointError, ReadOptions
from rewardserve.model.checkpoint.transformers_logging import quiet_transformers
from rewardserve.model.checkpoint.weights import make_readable, tensor_names
from rewardserve.model.contract import Probe, ScoringContract, Truncation, sample_to_dict
from rewardserve.model.conversation import Sample
from rewardserve.model.hidden_reference import FILE_NAME as HIDDEN_FILE
from rewardserve.model.hidden_reference import HiddenReference
from rewardserve.model.network import RewardNetwork
from rewardserve.model.tokenization.encoding_policy import EncodingPolicy

_WEIGHTS = "model.safetensors"

REDUCED_MARGIN = 4.0
SCORE_TOLERANCE = 1e-3
"""Largest difference of a float32 probe on another machine, in standard deviations of the raw score: kernels differ."""


def write(
    folder: Path | str,
    network: RewardNetwork,
    tokenizer: Any,
    *,
    policy: EncodingPolicy,
    calibration: Calibration | None = None,
    hidden: HiddenReference | None = None,
) -> int:
    """Write weights, heads, tokenizer, config and calibration. Return the pad token's id, which is not the end token's.

    Raise `CheckpointError` for a head with a bias: the layout has no place for it.
    """
    head_1D, bias = network.combined_head()
    if bias:
        raise CheckpointError(
            f"the head has a bias ({bias:.3g}): subtract it from the calibration's mean and set it to zero"
        )
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = exported_tokenizer(tokenizer, policy)
    pad_id = ensure_pad(network, tokenizer, policy)
    config = copy.deepcopy(network.config)
    config.pad_token_id = pad_id
    config.get_text_config().pad_token_id = pad_id
    config.value_head_prefix = "score"
    config.mean, config.std = (calibration.mean, calibration.std) if calibration else (0.0, 1.0)
    _write_classifier(folder, network, config, head_1D)
    write_heads(folder, network)
    tokenizer.save_pretrained(folder)
    write_calibration(folder, calibration, hidden)
    return pad_id


def write_labels(folder: Path | str, network: RewardNetwork) -> None:
    """Write configuration and weights of a sequence classifier whose labels are the heads, for an engine that reads only this.

    Labels are in the order of the heads. The biases of heads are left out; there is no tokenizer.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    _write_classifier(folder, network, copy.deepcopy(network.config), network.heads.weight.detach())


def _write_classifier(folder: Path, network: RewardNetwork, config: Any, labels_LD: torch.Tensor) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING

    for name in ("auto_map", "custom_pipelines"):  # custom code of the base model: the written class is transformers'
        for part in (config, config.get_text_config()):
            part.__dict__.pop(name, None)
    n_labels, width = labels_LD.shape
    config.num_labels = n_labels
    config.problem_type = "regression"
    if type(config) not in MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING:
        raise CheckpointError(f"transformers has no sequence classifier for {type(config).__name__}")
    with torch.device("meta"):
        whole = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING[type(config)](config)
    setattr(whole, whole.base_model_prefix, network.backbone)
    whole.score = torch.nn.Linear(width, n_labels, bias=False)
    whole.score.weight.data = labels_LD.float().cpu()
    whole.config = config
    (folder / _WEIGHTS).unlink(
        missing_ok=True
    )  # new shards would be saved beside an old file, and transformers would read the old one
    with quiet_transformers():
        whole.save_pretrained(folder)
    _index(folder)


def _index(folder: Path) -> None:
    """Write an index of the weights even where they are in one file, for which transformers writes none.

    vLLM and SGLang load every safetensors file of a folder as weights, unless an index leaves it out.
    """
    if (folder / _WEIGHTS).is_file():
        named = dict.fromkeys(tensor_names(folder / _WEIGHTS), _WEIGHTS)
        (folder / f"{_WEIGHTS}.index.json").write_text(
            json.dumps({"metadata": {}, "weight_map": named}, indent=1) + "\n"
        )


def write_calibration(folder: Path, calibration: Calibration | None, hidden: HiddenReference | None) -> None:
    """Write the calibration and the hidden reference, as far as given. The reference of an earlier calibration is deleted."""
    (folder / HIDDEN_FILE).unlink(missing_ok=True)
    if calibration is not None:
        calibration.save(folder)
        if hidden is not None:
            hidden.save(folder, calibration)


def write_heads(
    folder: Path | str,
    network: RewardNetwork,
    *,
    base: str | None = None,
    n_layers: int | None = None,
    template: str | None = None,
) -> None:
    """Write every head by name, with its weight in the raw score.

    With `base` (a folder, a packaged base or a hub name) the folder is a complete reward model: these heads over that
    unchanged language model, or its first `n_layers`, with `template` in place of its chat template.
    """
    listed = [{"name": n, "weight": w} for n, w in zip(network.head_names, network.head_weights, strict=True)]
    metadata = {"reward_heads": json.dumps(listed), **({"base_model_name_or_path": base} if base else {})}
    metadata |= {} if n_layers is None else {"base_model_layers": str(n_layers)}
    tensors = {
        n: w.detach().float().cpu().clone() for n, w in zip(network.head_names, network.heads.weight, strict=True)
    }
    Path(folder).mkdir(parents=True, exist_ok=True)
    save_file(tensors, Path(folder) / HEADS_FILE, metadata=metadata)
    if template is not None:
        (Path(folder) / CHAT_TEMPLATE).write_text(template, encoding="utf-8")
    make_readable(Path(folder))


def ensure_pad(network: RewardNetwork, tokenizer: Any, policy: EncodingPolicy) -> int:
    """Give the tokenizer a pad token that never ends a sequence and has an embedding, and return its id.

    Engines that search for "the last token that is not padding" would otherwise skip the end token and read one too early.
    An unused special token is chosen; only where there is none, a new one is added and the embedding grows.
    """
    if not choose_pad(tokenizer, policy):
        tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
        if len(tokenizer) > network.backbone.get_input_embeddings().num_embeddings:
            network.backbone.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    pad_id = int(tokenizer.pad_token_id)
    network.config.get_text_config().pad_token_id = pad_id
    return pad_id


def write_contract(
    folder: Path | str,
    *,
    probes: Sequence[Sample],
    max_tokens: int | None = None,
    truncation: Truncation = "prompt_left",
    options: ReadOptions = READ_DEFAULTS,
    device: str = "cpu",
) -> ScoringContract:
    """Read a checkpoint back from disk, score the probes one by one in float32, and write `scoring_contract.json`.

    They are scored in bfloat16 as well: `REDUCED_MARGIN` times the worst error there is the tolerance for serving in it
    (and in float16, which is finer). `max_tokens` None: as many as the model has positions. An existing contract is not read,
    and stays until the new one is complete. Raise `CheckpointError`.
    """
    folder = Path(folder)
    options = replace(options, dtype="float32", ignores_contract=True)
    checkpoint = read(str(folder), options, device=device)
    limit = min(max_tokens or checkpoint.policy.max_tokens, checkpoint.policy.max_tokens)
    checkpoint = replace(checkpoint, policy=replace(checkpoint.policy, max_tokens=limit, truncation=truncation))
    encode = checkpoint.encoder
    ids = [encode(sample).ids for sample in probes]
    scores = [score_single_row(checkpoint.network, row) for row in ids]
    scale = float(torch.tensor(scores).std()) if len(scores) > 1 else 1.0
    tolerance = max(SCORE_TOLERANCE * scale, 1e-5)
    reduced = read(str(folder), replace(options, dtype="bfloat16"), device=device)
    worst = max(
        (abs(score_single_row(reduced.network, row) - s) for row, s in zip(ids, scores, strict=True)), default=0.0
    )
    contract = replace(
        checkpoint.clauses("written"),
        probes=tuple(
            Probe(sample_to_dict(p), row, score, tolerance) for p, row, score in zip(probes, ids, scores, strict=True)
        ),
        dtype_tolerance=tuple((name, max(REDUCED_MARGIN * worst, tolerance)) for name in ("bfloat16", "float16")),
    )
    contract.save(folder)
    return contract


@torch.inference_mode()
def score_single_row(network: RewardNetwork, ids: Sequence[int]) -> float:
    """Raw score of one row alone, without padding: the reference for every other path."""
    ids_BT = torch.tensor([list(ids)], device=network.device)
    return float(network.raw(network(ids_BT).scores_BH)[0])

"""The torch backend: load a checkpoint, choose an engine, and verify the contract with both.

Knows nothing of requests or queues.
"""

from __future__ import annotations

from functools import partial

import torch

from rewardserve.model.backends import Identity, LoadedModel, LoadError, ModelSpec
from rewardserve.model.backends.allocator import set_malloc_thresholds
from rewardserve.model.backends.engine_choice import Engine, choose_engine
from rewardserve.model.backends.memory import host_memory
from rewardserve.model.backends.packed import PackedScorer
from rewardserve.model.backends.serving import (
    apply_limits,
    as_load_errors,
    enforce_contract,
    folder_or_name,
    length_notes,
    read_options,
    rule_notes,
)
from rewardserve.model.checkpoint import Checkpoint, read


def load(spec: ModelSpec) -> LoadedModel:
    """Load a checkpoint for serving. Raise `LoadError`, in strict mode `ContractBroken` too."""
    device = _device(spec.device)
    set_malloc_thresholds()
    with as_load_errors():
        checkpoint = read(folder_or_name(spec), read_options(spec), device=device)
    served = apply_limits(checkpoint, spec)
    max_tokens = served.policy.max_tokens
    scorer, notes = choose_engine(
        checkpoint.network, spec, pad_id=checkpoint.pad_id, max_tokens=max_tokens, hidden=checkpoint.hidden
    )
    encode = served.encoder
    identity = _identity(
        served,
        spec,
        device,
        scorer,
        (*notes, *length_notes(served), *checkpoint.notes, *rule_notes(spec, checkpoint), *encode.notes),
    )
    contract, report = enforce_contract(spec, checkpoint, scorer, identity)
    memory = partial(_cuda_memory, device) if device.startswith("cuda") else host_memory
    return LoadedModel(identity, scorer, encode, contract, report, checkpoint.calibration, memory=memory)


def _cuda_memory(device: str) -> tuple[int, int]:
    """Bytes in use on the device by all processes, and its total bytes."""
    free, total = torch.cuda.mem_get_info(device)
    return total - free, total


def _identity(checkpoint: Checkpoint, spec: ModelSpec, device: str, scorer: Engine, notes: tuple[str, ...]) -> Identity:
    network = checkpoint.network
    return Identity(
        name=spec.model or "default",
        architecture=checkpoint.architecture,
        backend="torch",
        engine=scorer.name,
        dtype=str(next(network.backbone.parameters()).dtype).removeprefix("torch."),
        device=device,
        heads=tuple(zip(network.head_names, network.head_weights, strict=True)),
        n_parameters=sum(p.numel() for p in network.parameters()),
        max_tokens=checkpoint.policy.max_tokens,
        vocab_size=checkpoint.policy.vocab_size,
        engine_notes=notes,
        score_position=checkpoint.score_position,
        matmul_precision=scorer.matmul_precision if isinstance(scorer, PackedScorer) else "highest",
        matmul_kernels=scorer.matmul_kernels if isinstance(scorer, PackedScorer) else "torch",
    )


def _device(asked: str) -> str:
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked.startswith("cuda") and not torch.cuda.is_available():
        raise LoadError(f"device={asked}, but torch sees no CUDA device here. Use auto or cpu.")
    return asked

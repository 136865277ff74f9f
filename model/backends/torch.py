"""The torch backend: loads a checkpoint, chooses an engine, holds both to the contract.

Knows nothing of requests or queues.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch

from model.backends import ContractBroken, Identity, LoadedModel, LoadError, ModelSpec
from model.backends.allocator import keep_big_blocks
from model.backends.engines import Engine, choose
from model.backends.memory import host_memory
from model.backends.packed import PackedScorer
from model.calibration import CalibrationError
from model.checkpoint import Checkpoint, CheckpointError, read
from model.contract import ContractReport, ContractUnreadable, Probe, ScoringContract, sample_from_dict, verify
from model.conversation import SampleError
from model.encoding import Encoder, EncodingPolicyError
from model.scorer import ScorerError, TokenBatch


def load(spec: ModelSpec) -> LoadedModel:
    """Load a checkpoint for serving. Raise `LoadError`, in strict mode `ContractBroken` too."""
    device = _device(spec.device)
    keep_big_blocks()
    try:
        checkpoint = read(spec.model or _default(), dtype=spec.dtype, device=device)
    except (CheckpointError, ContractUnreadable, CalibrationError, EncodingPolicyError) as error:
        raise LoadError(str(error)) from error
    contract = checkpoint.contract or checkpoint.clauses("inferred")
    served = _limited(checkpoint, spec)
    max_tokens = served.policy.max_tokens
    scorer, notes = choose(
        checkpoint.network, spec, pad_id=checkpoint.pad_id, max_tokens=max_tokens, hidden=checkpoint.hidden
    )
    identity = _identity(served, spec, device, scorer, notes)
    # The contract is about what training encoded; the operator may serve shorter rows than that.
    report = check_contract(contract, checkpoint, scorer, identity)
    if spec.contract == "strict" and not report.holds:
        raise ContractBroken(report)
    memory = partial(_cuda_memory, device) if device.startswith("cuda") else host_memory
    return LoadedModel(identity, scorer, served.encoder, contract, report, checkpoint.calibration, memory=memory)


def _cuda_memory(device: str) -> tuple[int, int]:
    """Bytes in use by anybody, and all there are."""
    free, total = torch.cuda.mem_get_info(device)
    return total - free, total


def check_contract(
    contract: ScoringContract, checkpoint: Checkpoint, scorer: Engine, identity: Identity
) -> ContractReport:
    """Encode and score the probes with the code that requests go through, and compare every clause."""
    if checkpoint.facts is None:
        raise LoadError("a model in training has no contract to check")
    encoder = checkpoint.encoder
    ids = tuple(_ids_now(encoder, probe) for probe in contract.probes)
    # Scores are of the ids that training saw: a broken tokenizer must not hide what the weights are worth.
    scores = tuple(_score_now(scorer, identity, probe) for probe in contract.probes)
    return verify(contract, checkpoint.facts, ids, scores)


def _ids_now(encoder: Encoder, probe: Probe) -> tuple[int, ...]:
    """What a probe encodes to today; nothing where it is refused, which no contract's ids are equal to."""
    try:
        return encoder(sample_from_dict(probe.sample)).ids
    except SampleError:
        return ()


def _score_now(scorer: Engine, identity: Identity, probe: Probe) -> float:
    """What a probe scores today; NaN where it cannot be scored, which is within no tolerance."""
    try:
        return identity.raw(scorer.score(TokenBatch((probe.ids,))).rows[0])
    except ScorerError:
        return float("nan")


def _identity(checkpoint: Checkpoint, spec: ModelSpec, device: str, scorer: Engine, notes: tuple[str, ...]) -> Identity:
    network = checkpoint.network
    return Identity(
        name=spec.model or "default",
        architecture=checkpoint.architecture,
        backend="torch",
        engine="packed" if isinstance(scorer, PackedScorer) else "padded",
        dtype=str(next(network.backbone.parameters()).dtype).removeprefix("torch."),
        device=device,
        heads=tuple(zip(network.head_names, network.head_weights, strict=True)),
        n_parameters=sum(p.numel() for p in network.parameters()),
        max_tokens=checkpoint.policy.max_tokens,
        engine_notes=notes,
        matmul_precision=scorer.matmul_precision if isinstance(scorer, PackedScorer) else "highest",
    )


def _limited(checkpoint: Checkpoint, spec: ModelSpec) -> Checkpoint:
    policy = checkpoint.policy
    limit = spec.max_input_tokens or policy.max_tokens
    if limit > policy.max_tokens:
        raise LoadError(
            f"REWARD_MAX_INPUT_TOKENS={limit} is more than this checkpoint can read ({policy.max_tokens}). Lower it."
        )
    return replace(
        checkpoint, policy=replace(policy, max_tokens=limit, truncation=spec.truncation or policy.truncation)
    )


def _device(asked: str) -> str:
    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked.startswith("cuda") and not torch.cuda.is_available():
        raise LoadError(f"REWARD_DEVICE={asked}, but torch sees no CUDA device here. Use auto or cpu.")
    return asked


def _default() -> str:
    from model.default import FOLDER

    return str(FOLDER)

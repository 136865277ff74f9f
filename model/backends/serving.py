"""Steps of every backend with a checkpoint: read it, apply the operator's limits, and verify the contract.

Knows no engine.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

from rewardserve.model.backends import ContractBroken, Identity, LoadError, ModelSpec
from rewardserve.model.calibration import CalibrationError
from rewardserve.model.checkpoint import Checkpoint, CheckpointError, ReadOptions
from rewardserve.model.checkpoint.max_length import max_row_tokens
from rewardserve.model.contract import (
    ContractReport,
    ContractUnreadable,
    Probe,
    ScoringContract,
    sample_from_dict,
    verify,
)
from rewardserve.model.conversation import SampleError
from rewardserve.model.encoding import Encoder
from rewardserve.model.scorer import Scorer, ScorerError, TokenBatch
from rewardserve.model.templates.chat_template import EncodingPolicyError

_ANY_IDS = (1, 2, 3, 4)
"""Ids that every vocabulary has."""


@contextmanager
def as_load_errors() -> Iterator[None]:
    """Raise `LoadError` in place of the errors of reading a checkpoint."""
    try:
        yield
    except (CheckpointError, ContractUnreadable, CalibrationError, EncodingPolicyError) as error:
        raise LoadError(str(error)) from error
    except SampleError as error:
        raise LoadError(
            f"the checkpoint's chat template is broken: {error}. Restore it, or the one of the tokenizer."
        ) from error


def folder_or_name(spec: ModelSpec) -> str:
    """Folder or hub name of the model; the folder of the embedded default for its name and for none."""
    from rewardserve.model.default import DEFAULT_MODEL, FOLDER

    return str(FOLDER) if spec.model in ("", DEFAULT_MODEL) else spec.model


def read_options(spec: ModelSpec) -> ReadOptions:
    """Options for reading the checkpoint, from the operator's."""
    return ReadOptions(
        dtype=spec.dtype,
        allow_pickle=spec.allow_pickle,
        ignore_checkpoint_code=spec.ignore_checkpoint_code,
        template_date=spec.template_date,
        ending=spec.ending,
        reads_at=spec.reads_at,
    )


def rule_notes(spec: ModelSpec, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Note the settings for a checkpoint without a contract that have no effect, since a written contract decides."""
    given = {"ending": spec.ending, "reads_at": spec.reads_at, "template_date": spec.template_date}
    contract = checkpoint.contract
    ignored = [f"{name}={value}" for name, value in given.items() if value not in (None, getattr(contract, name, None))]
    if contract is None or not ignored:
        return ()
    stated = ", ".join(f"{name.partition('=')[0]} {getattr(contract, name.partition('=')[0])}" for name in ignored)
    return (f"{', '.join(ignored)} is ignored: the checkpoint's scoring_contract.json is binding ({stated})",)


def apply_limits(checkpoint: Checkpoint, spec: ModelSpec) -> Checkpoint:
    """The checkpoint with the operator's length limit and truncation. Raise `LoadError`."""
    policy = checkpoint.policy
    limit = spec.max_input_tokens or policy.max_tokens
    if limit > policy.max_tokens and not has_no_max_length(checkpoint):
        raise LoadError(
            f"max_input_tokens={limit} is more than this checkpoint can read ({policy.max_tokens}). Lower it."
        )
    return replace(
        checkpoint, policy=replace(policy, max_tokens=limit, truncation=spec.truncation or policy.truncation)
    )


def has_no_max_length(checkpoint: Checkpoint) -> bool:
    """Whether neither the contract nor the model limits the length of a row, so that the operator's limit applies."""
    return checkpoint.contract is None and max_row_tokens(checkpoint.network.backbone) is None


def length_notes(checkpoint: Checkpoint) -> tuple[str, ...]:
    """Note for the operator where the model has no maximum length."""
    if not has_no_max_length(checkpoint):
        return ()
    return (
        f"the model has no maximum length: rows of up to {checkpoint.policy.max_tokens} tokens are accepted "
        "(max_input_tokens changes that)",
    )


def enforce_contract(
    spec: ModelSpec, checkpoint: Checkpoint, scorer: Scorer, identity: Identity
) -> tuple[ScoringContract, ContractReport]:
    """Return the contract, inferred where there is none, and its report. In strict mode raise `ContractBroken`.

    The contract holds for the row lengths of training; the operator may serve shorter rows.
    """
    contract = checkpoint.contract or checkpoint.clauses("inferred")
    report = check_contract(contract, checkpoint, scorer, identity)
    if (
        spec.contract_mode == "strict"
        and not contract.probes
        and not math.isfinite(_score_of(scorer, identity, _ANY_IDS))
    ):
        raise LoadError(
            f"{identity.name} gives no finite score, not even for a few plain tokens: its weights are damaged, or they "
            f"overflow {identity.dtype}. Copy the checkpoint again, or set dtype."
        )
    if spec.contract_mode == "strict" and not report.holds:
        raise ContractBroken(report)
    return contract, report


def check_contract_files(spec: ModelSpec, checkpoint: Checkpoint) -> None:
    """In strict mode raise `ContractBroken` for clauses that need no forward, before the slow start of an engine."""
    contract, facts = checkpoint.contract, checkpoint.facts
    if contract is None or facts is None or spec.contract_mode != "strict":
        return
    encoder = checkpoint.encoder
    ids = tuple(_ids_now(encoder, probe) for probe in contract.probes)
    report = verify(contract, facts, ids, tuple(probe.score for probe in contract.probes))
    if not report.holds:
        raise ContractBroken(report)


def check_contract(
    contract: ScoringContract, checkpoint: Checkpoint, scorer: Scorer, identity: Identity
) -> ContractReport:
    """Encode and score the probes by the code path of requests, and compare every clause."""
    if checkpoint.facts is None:
        raise LoadError("a model in training has no contract to check")
    encoder = checkpoint.encoder
    ids = tuple(_ids_now(encoder, probe) for probe in contract.probes)
    # Scores are of the ids of training, so that a broken tokenizer does not hide a difference of the weights.
    scores = tuple(_score_of(scorer, identity, probe.ids) for probe in contract.probes)
    return verify(contract, checkpoint.facts, ids, scores)


def _ids_now(encoder: Encoder, probe: Probe) -> tuple[int, ...]:
    """Ids of a probe now; empty where the encoder refuses it, which differs from the ids of every contract."""
    try:
        return encoder(sample_from_dict(probe.sample)).ids
    except SampleError:
        return ()


def _score_of(scorer: Scorer, identity: Identity, ids: tuple[int, ...]) -> float:
    """Score of a row now; NaN where it cannot be scored, which is within no tolerance."""
    try:
        return identity.raw(scorer.score(TokenBatch((ids,))).rows[0])
    except ScorerError:
        return float("nan")

"""The torch backend: loads a checkpoint, holds it to its contract, scores left-padded batches.

Knows nothing of requests or queues. Shapes: B rows, T tokens, H heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from model.backends import ContractBroken, Identity, LoadedModel, LoadError, ModelSpec
from model.calibration import CalibrationError
from model.checkpoint import Checkpoint, CheckpointError, read
from model.contract import ContractReport, ContractUnreadable, Probe, ScoringContract, sample_from_dict, verify
from model.conversation import SampleError
from model.encoding import Encoder, EncodingPolicyError
from model.network import RewardNetwork
from model.padding import left_pad
from model.scorer import BatchScores, HeadScores, OutOfMemory, ScorerError, TokenBatch


class PaddedScorer:
    """One forward a batch, padded on the left to its longest row."""

    def __init__(self, network: RewardNetwork, *, pad_id: int, max_tokens: int) -> None:
        self._network, self._pad_id, self._max_tokens = network, pad_id, max_tokens

    @property
    def max_tokens(self) -> int:
        """The longest row."""
        return self._max_tokens

    @torch.inference_mode()
    def score(self, batch: TokenBatch) -> BatchScores:
        """Score every row, in order. Raise `OutOfMemory` or `ScorerError`."""
        ids_BT, mask_BT = left_pad(batch.rows, self._pad_id)
        device = self._network.device
        padding = ids_BT.numel() - batch.n_tokens
        try:
            out = self._network(ids_BT.to(device), mask_BT.to(device) if padding else None)
            scores_BH = out.scores_BH.cpu().tolist()
        except torch.OutOfMemoryError as error:
            raise OutOfMemory(f"{ids_BT.numel()} token positions do not fit: {error}") from error
        except (RuntimeError, IndexError) as error:  # an id beyond the embedding is an IndexError on a CPU
            if "can't allocate memory" in str(error):  # what the CPU allocator says; it has no type of its own
                raise OutOfMemory(f"{ids_BT.numel()} token positions do not fit") from error
            raise ScorerError(f"the forward failed: {error}") from error
        names = self._network.head_names
        rows: tuple[HeadScores, ...] = tuple(dict(zip(names, row, strict=True)) for row in scores_BH)
        return BatchScores(rows, tokens_computed=batch.n_tokens, tokens_padding=padding)

    @property
    def shares_prefixes(self) -> bool:
        """No: every row is computed for itself."""
        return False

    def cost(self, lengths: Sequence[int]) -> int:
        """Rows times the longest row."""
        return len(lengths) * max(lengths, default=0)

    def close(self) -> None:
        """Let go of the weights."""
        del self._network


def load(spec: ModelSpec) -> LoadedModel:
    """Load a checkpoint for serving. Raise `LoadError`, in strict mode `ContractBroken` too."""
    device = _device(spec.device)
    try:
        checkpoint = read(spec.model or _default(), dtype=spec.dtype, device=device)
    except (CheckpointError, ContractUnreadable, CalibrationError, EncodingPolicyError) as error:
        raise LoadError(str(error)) from error
    contract = checkpoint.contract or checkpoint.clauses("inferred")
    served = _limited(checkpoint, spec)
    max_tokens = served.policy.max_tokens
    scorer = PaddedScorer(checkpoint.network, pad_id=checkpoint.pad_id, max_tokens=max_tokens)
    identity = _identity(served, spec, device)
    # The contract is about what training encoded; the operator may serve shorter rows than that.
    report = check_contract(contract, checkpoint, scorer, identity)
    if spec.contract == "strict" and not report.holds:
        raise ContractBroken(report)
    return LoadedModel(identity, scorer, served.encoder, contract, report, checkpoint.calibration)


def check_contract(
    contract: ScoringContract, checkpoint: Checkpoint, scorer: PaddedScorer, identity: Identity
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


def _score_now(scorer: PaddedScorer, identity: Identity, probe: Probe) -> float:
    """What a probe scores today; NaN where it cannot be scored, which is within no tolerance."""
    try:
        return identity.raw(scorer.score(TokenBatch((probe.ids,))).rows[0])
    except ScorerError:
        return float("nan")


def _identity(checkpoint: Checkpoint, spec: ModelSpec, device: str) -> Identity:
    network = checkpoint.network
    return Identity(
        name=spec.model or "default",
        architecture=checkpoint.architecture,
        backend="torch",
        engine="padded",
        dtype=str(next(network.backbone.parameters()).dtype).removeprefix("torch."),
        device=device,
        heads=tuple(zip(network.head_names, network.head_weights, strict=True)),
        n_parameters=sum(p.numel() for p in network.parameters()),
        max_tokens=checkpoint.policy.max_tokens,
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

"""Records of a checkpoint in memory: `Checkpoint`, `ReadOptions`, `CheckpointError`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rewardserve.model.calibration import Calibration
from rewardserve.model.contract import ObservedFacts, Origin, ScoringContract
from rewardserve.model.encoding import Encoder
from rewardserve.model.hidden_reference import HiddenReference
from rewardserve.model.layout_rules import Ending, ReadsAt
from rewardserve.model.network import RewardNetwork
from rewardserve.model.tokenization.encoding_policy import EncodingPolicy, describe_position

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


AUDIT_JUDGE = "audit_judge"
"""Folder of the audit judge inside that of a checkpoint."""


class CheckpointError(Exception):
    """The checkpoint cannot be read or written; the message has the reason and the remedy."""


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """Options for reading a checkpoint.

    `dtype` "auto": the contract's, else that of the stored weights. `allow_pickle`: weights need not be safetensors.
    Custom code of a checkpoint is never run; a checkpoint with such code is an error, unless `ignore_checkpoint_code` states
    that the classes of transformers compute the same. `ignores_contract`: the checkpoint is read as one without a contract.
    Where there is no contract: `template_date` is the ISO date for a chat template that uses the current date (None:
    `STATED_DATE`); `ending` and `reads_at` replace the rule of the layout (`layout_rules`).
    """

    dtype: str = "auto"
    allow_pickle: bool = False
    ignore_checkpoint_code: bool = False
    template_date: str | None = None
    ending: Ending | None = None
    reads_at: ReadsAt | None = None
    ignores_contract: bool = False


READ_DEFAULTS = ReadOptions()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that is needed to train or to serve one reward model.

    `format`: the layout that it was read from. `facts` and `contract` are None for a model in training, whose weights are
    not final. `hidden`: reference of the calibration's hidden states; None: not fitted.
    `notes`: notes on its files for the operator. `left_out`: its tensors that the class of its layout does not load.
    """

    network: RewardNetwork
    tokenizer: Any
    policy: EncodingPolicy
    pad_id: int
    format: str
    folder: Path
    calibration: Calibration | None = None
    contract: ScoringContract | None = None
    facts: ObservedFacts | None = None
    hidden: HiddenReference | None = None
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    @property
    def encoder(self) -> Encoder:
        """The encoding of this checkpoint."""
        return Encoder(self.tokenizer, self.policy)

    @property
    def architecture(self) -> str:
        """Name of the backbone's class."""
        return type(self.network.backbone).__name__

    @property
    def score_position(self) -> str:
        """The token at which the score is read, and the reason, in words."""
        return describe_position(self.tokenizer, self.policy)

    def clauses(self, origin: Origin) -> ScoringContract:
        """The contract of this checkpoint without probes. Raise `CheckpointError` in training."""
        facts, policy, network = self.facts, self.policy, self.network
        if facts is None:
            raise CheckpointError(f"{self.folder} is still in training: its weights are not final")
        return ScoringContract(
            template=policy.template,
            template_digest=facts.template_digest,
            bos_id=facts.bos_id,
            end_text=facts.end_text,
            end_ids=facts.end_ids,
            template_tail=policy.template_tail,
            ending=policy.rule.ending,
            reads_at=policy.rule.reads_at,
            skip_id=policy.skip_id,
            bos_without_template=policy.rule.bos_without_template,
            tokenizes=policy.rule.tokenizes,
            truncation=policy.truncation,
            max_tokens=policy.max_tokens,
            pad_id=facts.pad_id,
            tokenizer_digest=facts.tokenizer_digest,
            weights_digest=facts.weights_digest,
            head_digest=facts.head_digest,
            dtype=facts.dtype,
            heads=tuple(zip(network.head_names, network.head_weights, strict=True)),
            template_date=facts.template_date,
            origin=origin,
        )

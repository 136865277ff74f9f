"""What a checkpoint is once it is read, and how reading can fail."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from model.calibration import Calibration
from model.contract import Facts, ScoringContract
from model.encoding import Encoder, EncodingPolicy
from model.network import RewardNetwork

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


class CheckpointError(Exception):
    """This checkpoint cannot be read or written; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything that is needed to train or to serve one reward model.

    `format` says how it was read. `facts` and `contract` are None for a model in training: its weights are
    not settled yet.
    """

    network: RewardNetwork
    tokenizer: Any
    policy: EncodingPolicy
    pad_id: int
    format: str
    folder: Path
    calibration: Calibration | None = None
    contract: ScoringContract | None = None
    facts: Facts | None = None

    @property
    def encoder(self) -> Encoder:
        """The encoding of this checkpoint."""
        return Encoder(self.tokenizer, self.policy)

    @property
    def architecture(self) -> str:
        """The backbone's class, as a reader knows it."""
        return type(self.network.backbone).__name__

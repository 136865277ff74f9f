"""The output layer of the language model that `loss.sft` keeps, refused where there is no language model to keep."""

from __future__ import annotations

from math import log

import torch

from rewardserve.model.checkpoint import Checkpoint, CheckpointError
from rewardserve.model.checkpoint.lm_head import read_lm_head
from rewardserve.training.batches.members import trained_outputs
from rewardserve.training.batches.pair_batches import Collator, token_rows
from rewardserve.training.dataset.sequences import FeedbackTable
from rewardserve.training.objective.text_loss import text_loss
from rewardserve.training.settings.config import Config
from rewardserve.training.settings.validation import ConfigError

_N_TEXTS = 8
"""Pairs whose preferred responses tell whether a language model is there."""
_WORSE_THAN_CHANCE = 1.25
"""Least loss of no language model, relative to that of a guess; random weights are at about 1."""


def kept_lm_head(config: Config, start: Checkpoint, table: FeedbackTable) -> torch.nn.Linear:
    """Output layer of the language model. Raise `ConfigError` without one, and where it is far worse than chance."""
    try:
        head = read_lm_head(start)
    except CheckpointError as error:
        raise ConfigError(f"loss.sft needs the output layer of a language model: {error}. Leave it out.") from error
    decided = [i for i, item in enumerate(table.items) if item.kind == "pairs" and item.values[0] > item.values[-1]]
    shares = trained_outputs(table.items, config.model, config.seed)
    batch = Collator(table, shares, token_rows(table, start.pad_id), reads_tokens=True)(decided[:_N_TEXTS])
    with torch.no_grad():
        places = [batch[name].to(start.network.device) for name in ("input_ids", "attention_mask")]
        hidden_KD = start.network(*places, token_at_K=batch["token_at"]).hidden_KD
        weight_R = torch.ones_like(batch["token_weight"]) / max(len(batch["token_weight"]), 1)
        told = [each.to(start.network.device) for each in (batch["token"], batch["token_row"], weight_R)]
        nll = float(text_loss(hidden_KD, head, *told))
    chance = log(head.out_features)
    if nll > _WORSE_THAN_CHANCE * chance:
        raise ConfigError(
            f"loss.sft has no language model to keep: a token of a response costs {nll:.1f} nats, and a guess {chance:.1f}. The "
            "output layer belongs to the last layer of the language model: take all of its layers (model.n_layers, or the number "
            "after the colon of model.path), or leave loss.sft out."
        )
    return head

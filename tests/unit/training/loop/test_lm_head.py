"""A language model whose last layers are cut has no output layer to keep."""

from __future__ import annotations

import pytest
import torch

from rewardserve.model.checkpoint import read_backbone
from rewardserve.training.dataset import sequences
from rewardserve.training.loop.lm_head import kept_lm_head
from rewardserve.training.settings.validation import ConfigError
from tests.support import planted_pairs as world
from tests.unit.training.batches.test_batches import pairs_of
from tests.unit.training.loop.test_trainer import config


def test_hidden_states_that_predict_worse_than_a_guess_are_refused(tmp_path):
    start = read_backbone(str(world.language_model(tmp_path)))
    table = sequences.encode(pairs_of(world.planted_rows(20)), start.encoder)
    assert kept_lm_head(config("loss.sft=0.1"), start, table).weight.requires_grad
    with torch.no_grad():
        start.network.backbone.norm.weight *= (
            20  # as the hidden states before the last layers: large, and in no relation
        )
    with pytest.raises(ConfigError, match="no language model to keep"):
        kept_lm_head(config("loss.sft=0.1"), start, table)

"""What `all-linear` leaves without an adapter, held against the modules that peft has wrapped."""

from __future__ import annotations

import re

import pytest
import torch
from transformers import AutoModel

from rewardserve.model.network import RewardNetwork
from rewardserve.training.loop.methods import adapt, not_adapted
from rewardserve.training.settings.model_config import MethodConfig
from rewardserve.training.settings.validation import ConfigError
from tests.support.tiny import ARCHITECTURES, tiny_config

PACKED = {"mixtral", "qwen3_moe"}


def network(architecture):
    return RewardNetwork.create(AutoModel.from_config(tiny_config(architecture, 320)), ("score",), None)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_matrix_has_an_adapter_or_is_told(architecture):
    """But for embeddings, which are looked up and not multiplied."""
    method = MethodConfig(name="lora", rank=2)
    wrapped = network(architecture)
    said = not_adapted(wrapped, method)
    adapt(wrapped, method)
    backbone = wrapped.backbone.get_base_model()
    plain = {
        name
        for name, parameter in backbone.named_parameters()
        if parameter.ndim > 1 and "lora_" not in name and ".base_layer." not in name
    }
    looked_up = {f"{n}.weight" for n, m in backbone.named_modules() if isinstance(m, torch.nn.Embedding)}
    left = {re.sub(r"\.\d+\.", ".*.", name) for name in plain - looked_up}
    assert bool(left) == (architecture in PACKED)
    assert len(said) == bool(left)
    for note in said:
        assert {name for name in left if name in note} == left


def test_layers_and_targets_of_ones_own_are_taken_at_their_word():
    some = network("mixtral")
    assert not not_adapted(some, MethodConfig(name="lora", rank=2, targets=("q_proj",)))
    assert not not_adapted(some, MethodConfig(name="full"))
    (one,) = not_adapted(some, MethodConfig(name="lora", rank=2, layers=(1,)))
    (both,) = not_adapted(some, MethodConfig(name="lora", rank=2))
    share = [int(re.search(r"(\d+) %", note)[1]) for note in (one, both)]
    assert share[0] < share[1]


def test_layers_that_peft_refuses_are_named_with_the_setting():
    from transformers import MambaConfig

    backbone = AutoModel.from_config(MambaConfig(vocab_size=320, hidden_size=32, num_hidden_layers=1, state_size=8))
    with pytest.raises(ConfigError, match=r"method\.targets: .*'out_proj'"):
        adapt(RewardNetwork.create(backbone, ("score",), None), MethodConfig(name="lora", rank=2))

"""Steps of training on a CUDA device that checks devices, dtypes and shapes: our Trainer, its batches, loss and optimizer.

torch's backward asks the driver for a context, so gradients are zeros made for every weight; we write no backward of our own.
"""

from __future__ import annotations

import os
from contextlib import ExitStack
from unittest import mock

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState

from rewardserve.training.batches import packed_attention, scoring
from rewardserve.training.batches.packed_attention import may_share_prefixes
from rewardserve.training.batches.pair_batches import Collator, packed_rows, token_rows
from rewardserve.training.loop.trainer import RewardTrainer
from tests.cuda_dry.device import fake_cuda, make
from tests.support.tiny import ARCHITECTURES
from tests.unit.model.test_network import ragged_rows
from tests.unit.training.batches.test_batches import outputs_of, table_of
from tests.unit.training.loop.test_trainer import COMPARISONS, config

FOUND = {"is_available": True, "device_count": 1, "set_device": None, "is_bf16_supported": True, "current_device": 0,
         "empty_cache": None, "synchronize": None, "manual_seed_all": None}  # fmt: skip


@pytest.fixture
def found_device():
    """torch says that there is one device; accelerate has looked for none before, and forgets this one afterwards."""
    with ExitStack() as stack:
        stack.enter_context(mock.patch.dict(os.environ))
        for name, answer in FOUND.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, lambda *_, answer=answer, **__: answer))
        # Fake weights cannot be swapped for their copies; the network is made on the device, and each call checks where it is.
        stack.enter_context(mock.patch.object(torch.nn.Module, "to", lambda self, *_, **__: self))
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()
        yield
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()


@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("precision", ["no", "bf16"])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.usefixtures("found_device")
def test_steps_of_training_run_on_a_gpu(architecture, precision, is_packed, tmp_path, monkeypatch):
    """Packed rows in half precision go through torch's variable-length attention, in one call a layer."""
    table = table_of(COMPARISONS)
    recipe = config("optim.max_steps=2", "optim.batch_pairs=3", "optim.accumulate=2", "optim.ema=0.9",
                    f"optim.precision={precision}")  # fmt: skip
    with fake_cuda(torch.float32):
        network = make(architecture, torch.float32).train()
        shares_prefixes = may_share_prefixes(network)
        rows = packed_rows(table, shares_prefixes=shares_prefixes) if is_packed else token_rows(table, 4)
        collator = Collator(table, outputs_of(table), rows)

        def backward(loss: torch.Tensor, *_: object, **__: object) -> None:
            assert (loss.dtype, loss.device.type, loss.shape) == (torch.float32, "cuda", ())
            assert loss.requires_grad
            for parameter in network.parameters():
                parameter.grad = torch.zeros_like(parameter)

        n_varlen: list[int] = []
        varlen = packed_attention._varlen
        monkeypatch.setattr(packed_attention, "_varlen", lambda *given: n_varlen.append(1) or varlen(*given))
        monkeypatch.setattr(torch.Tensor, "backward", backward)
        trainer = RewardTrainer(network, table, collator, recipe, evaluate_held_out=None, steps=tmp_path / "steps")
        trainer.args.save_strategy = "no"  # there are no values to write
        assert trainer.args.device.type == "cuda"
        trainer.train()
        in_one_call = is_packed and precision == "bf16" and architecture not in ("gemma2", "gpt2")
        assert bool(n_varlen) == in_one_call
        moments = [trainer.optimizer.state[parameter]["exp_avg"] for parameter in network.parameters()]
        assert {(moment.device.type, moment.dtype) for moment in moments} == {("cuda", torch.float32)}


@pytest.mark.parametrize("architecture", ["llama", "gemma2", "mixtral"])
def test_evaluation_and_features_of_a_frozen_base_run_on_a_gpu(architecture):
    with fake_cuda():
        network = make(architecture, torch.bfloat16)
        scores_NH, hidden_ND = scoring.read(network, ragged_rows(), pad_id=4, batch_tokens=64, label="scoring")
        assert (scores_NH.shape, scores_NH.dtype) == ((len(ragged_rows()), 1), "float64")
        assert (hidden_ND.device.type, hidden_ND.dtype) == ("cpu", torch.float32)

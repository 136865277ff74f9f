"""Linear layers with weights that lie ready: the same products, for any number of rows, or not used."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model.backends import ModelSpec
from model.backends.engines import choose
from model.backends.packed.weights import PackedWeights
from model.scorer import TokenBatch
from tests.unit.model.test_network import TOLERANCE, alone, make

needs_mkl = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch was built without MKL")


def layers(*, bias: bool) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(48, 96, bias=bias), nn.SiLU(), nn.Linear(96, 32, bias=bias)).eval()


@needs_mkl
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 5, 31, 64, 255, 256, 257, 1000])
def test_products_are_those_of_the_plain_layers_for_any_number_of_rows(rows: int, bias: bool):
    network, x = layers(bias=bias), torch.randn(1, rows, 48)
    with torch.inference_mode():
        expected = network(x)
        packed = PackedWeights(network)
        packed.install()
        packed.release()
        torch.testing.assert_close(network(x), expected, atol=1e-5, rtol=1e-5)
    assert len(packed) == 2


@needs_mkl
def test_removed_the_layers_are_as_they_were():
    network, x = layers(bias=True), torch.randn(7, 48)
    with torch.inference_mode():
        expected = network(x)
        packed = PackedWeights(network)
        packed.install()
        packed.remove()
        assert torch.equal(network(x), expected)


def test_a_packed_form_that_gives_other_products_is_not_used(monkeypatch):
    monkeypatch.setattr("model.backends.packed.weights._pack", lambda weight: torch.zeros(1))
    monkeypatch.setattr("model.backends.packed.weights._Packed.__call__", lambda self, x: self.layer(x) + 0.01)
    assert len(PackedWeights(layers(bias=False))) == 0


def test_weights_in_half_precision_are_left_alone():
    assert len(PackedWeights(layers(bias=False).to(torch.bfloat16))) == 0


@needs_mkl
def test_a_chosen_engine_holds_its_weights_once_and_scores_as_before():
    network, row = make("llama"), tuple(range(5, 60))
    expected, n = alone(network, list(row)).item(), sum(p.numel() for p in network.parameters())
    scorer, _ = choose(network, ModelSpec(), pad_id=4, max_tokens=256)
    held = {m.weight.untyped_storage().nbytes() for m in network.backbone.modules() if isinstance(m, nn.Linear)}
    assert held == {4}, "one number, seen as a whole matrix"
    assert sum(p.numel() for p in network.parameters()) == n
    assert scorer.score(TokenBatch((row,))).rows[0]["score"] == pytest.approx(expected, abs=TOLERANCE)

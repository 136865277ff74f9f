"""Linear layers with packed weights: the same products, for any number of rows, or not used."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rewardserve.model.backends import MatmulPrecision, ModelSpec
from rewardserve.model.backends.engine_choice import choose_engine
from rewardserve.model.backends.native import KernelsUnavailable, load
from rewardserve.model.backends.packed import packed_layers, weights
from rewardserve.model.backends.packed.weights import PackedWeights
from rewardserve.model.scorer import TokenBatch
from tests.support.machine import needs_amx, needs_avx512
from tests.unit.model.test_network import TOLERANCE, alone, make

in_c = pytest.mark.parametrize(
    "precision", [pytest.param("high", marks=needs_amx), pytest.param("highest", marks=needs_avx512)]
)
"""The precision whose kernels are those for AMX, or for AVX-512."""

needs_mkl = pytest.mark.skipif(not torch.backends.mkl.is_available(), reason="this torch was built without MKL")


def computes_as_before(
    network: nn.Module, x: torch.Tensor, precision: MatmulPrecision, tolerance: float
) -> PackedWeights:
    """Pack a network for good, compare what it gives with what it gave."""
    with torch.inference_mode():
        expected = network(x)
        packed = PackedWeights(network, precision)
        packed.install()
        packed.release()
        torch.testing.assert_close(network(x), expected, atol=tolerance, rtol=tolerance)
    return packed


def layers(*, bias: bool) -> nn.Sequential:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(48, 96, bias=bias), nn.SiLU(), nn.Linear(96, 32, bias=bias)).eval()


@needs_mkl
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 5, 31, 64, 255, 256, 257, 1000])
def test_products_are_those_of_the_plain_layers_for_any_number_of_rows(rows: int, bias: bool):
    packed = computes_as_before(layers(bias=bias), torch.randn(1, rows, 48), "highest", 1e-5)
    assert len(packed) == 2


@needs_mkl
def test_removed_the_layers_are_as_they_were():
    network, x = layers(bias=True), torch.randn(7, 48)
    with torch.inference_mode():
        expected = network(x)
        packed = PackedWeights(network, "highest")
        packed.install()
        packed.remove()
        assert torch.equal(network(x), expected)


@needs_mkl
@pytest.mark.parametrize("precision", ["highest", "high"])
def test_a_packed_form_that_gives_other_products_is_not_used(monkeypatch, precision):
    for kind in (packed_layers.MklLinear, packed_layers.NativeLinear):
        monkeypatch.setattr(kind, "__call__", lambda self, x: self.module(x) + 0.01)
    packed = PackedWeights(layers(bias=False), precision)
    assert len(packed) == 0
    assert packed.precision == "highest"


def gated(activation: type[nn.Module] = nn.SiLU, *, bias: bool = False, swapped: bool = False) -> nn.Module:
    class Mlp(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate_proj, self.up_proj = nn.Linear(48, 100, bias=bias), nn.Linear(48, 100, bias=bias)
            self.down_proj, self.act_fn = nn.Linear(100, 48, bias=bias), activation()

        def forward(self, x):
            gate, up = self.gate_proj(x), self.up_proj(x)
            return self.down_proj(self.act_fn(up) * gate if swapped else self.act_fn(gate) * up)

    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(48, 48), Mlp()).eval()


@in_c
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 33, 300])
def test_a_gated_mlp_is_computed_as_a_whole(rows: int, bias: bool, precision: MatmulPrecision):
    packed = computes_as_before(gated(bias=bias), torch.randn(2, rows, 48), precision, 2e-5)
    assert (len(packed), packed.precision) == (2, precision), "a layer, and the MLP in one"


@in_c
@pytest.mark.parametrize("other", [{"activation": nn.GELU}, {"swapped": True}])
def test_an_mlp_of_the_same_parts_that_does_something_else_keeps_its_forward(other, precision: MatmulPrecision):
    packed = computes_as_before(gated(**other), torch.randn(2, 9, 48), precision, 2e-5)
    assert (len(packed), packed.precision) == (4, precision), "layer by layer"


class TinyRMSNorm(nn.Module):
    """As Llama does it, or with `offset` as Gemma does."""

    def __init__(self, offset: float, *, centred: bool = False) -> None:
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.randn(48) * 0.1), 1e-5
        self.offset, self.centred = offset, centred

    def forward(self, x):
        x = x - x.mean(-1, keepdim=True) if self.centred else x
        return (self.weight + self.offset) * x * (x.pow(2).mean(-1, keepdim=True) + self.eps).rsqrt()


@in_c
@pytest.mark.parametrize(
    ("norm", "n"), [(TinyRMSNorm(0.0), 2), (TinyRMSNorm(1.0), 2), (TinyRMSNorm(0.0, centred=True), 1)]
)
def test_a_norm_is_computed_in_one_pass_where_it_is_one(norm: nn.Module, n: int, precision: MatmulPrecision):
    torch.manual_seed(7)
    network = nn.Sequential(norm, nn.Linear(48, 8)).eval()
    packed = computes_as_before(network, torch.randn(3, 11, 48), precision, 2e-5)
    assert len(packed) == n


@needs_avx512
def test_without_amx_the_products_are_those_of_avx512(monkeypatch):
    def no_amx(instructions):
        if instructions == "amx":
            raise KernelsUnavailable("no AMX", is_actionable=False)
        return load(instructions)

    monkeypatch.setattr(weights, "load", no_amx)
    packed = PackedWeights(layers(bias=False), "high")
    assert (packed.precision, packed.kernels_name, packed.note) == ("highest", "avx512", None)


@needs_mkl
def test_without_compiled_kernels_it_is_mkl_and_the_reason(monkeypatch):
    def not_compiled(instructions):
        raise KernelsUnavailable(f"{instructions} not compiled", is_actionable=True)

    monkeypatch.setattr(weights, "load", not_compiled)
    packed = PackedWeights(layers(bias=False), "high")
    assert (len(packed), packed.precision, packed.note) == (2, "highest", "amx not compiled")
    assert packed.kernels_name == "mkl"


@needs_mkl
def test_a_cpu_that_has_not_the_instructions_is_nothing_to_complain_about(monkeypatch):
    def too_old(instructions):
        raise KernelsUnavailable(f"no {instructions}", is_actionable=False)

    monkeypatch.setattr(weights, "load", too_old)
    assert PackedWeights(layers(bias=False), "high").note is None


def test_weights_in_half_precision_are_left_alone():
    assert len(PackedWeights(layers(bias=False).to(torch.bfloat16), "highest")) == 0


@needs_mkl
def test_a_chosen_engine_holds_its_weights_once_and_scores_as_before():
    network, row = make("llama"), tuple(range(5, 60))
    expected, n = alone(network, list(row)).item(), sum(p.numel() for p in network.parameters())
    scorer, _ = choose_engine(network, ModelSpec(), pad_id=4, max_tokens=256)
    held = {m.weight.untyped_storage().nbytes() for m in network.backbone.modules() if isinstance(m, nn.Linear)}
    assert held == {4}, "one number, seen as a whole matrix"
    assert sum(p.numel() for p in network.parameters()) == n
    assert scorer.score(TokenBatch((row,))).rows[0]["score"] == pytest.approx(expected, abs=TOLERANCE)

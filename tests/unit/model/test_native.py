"""The kernels in C against float64: within the error of their algorithm, for any shape and any other rows in the batch."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from rewardserve.model.backends.native import Instructions, Kernels, load
from tests.support.machine import KERNELS

SHARE: dict[Instructions, float] = {"amx": 3 * 2.0**-16, "avx512": 0.0}
"""Of the sum of |x w|. Rounding to bfloat16 is off by at most 2^-8, so two parts are off by 2^-16: that is each factor's
share, and the product of the two small parts, which is left out, is no larger. AVX-512 multiplies float32.
"""

DIMENSION = st.one_of(st.integers(1, 70), st.sampled_from([255, 256, 257, 511, 512, 513, 540]))
SHAPES = st.tuples(DIMENSION, DIMENSION, DIMENSION)


def numbers(*shape: int, seed: int) -> torch.Tensor:
    """Of very different sizes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator) * torch.randn(shape, generator=generator).exp()


@pytest.fixture(scope="module", params=KERNELS)
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return load(request.param)


def assert_close(
    kernels: Kernels, out: torch.Tensor, x: torch.Tensor, w: torch.Tensor, bias: torch.Tensor | None = None
) -> None:
    x, w, bias = x.double(), w.double(), bias.double() if bias is not None else None
    off = (out - F.linear(x, w, bias)).abs()
    # float32 adds its own: one rounding a step of a sum.
    allowed = (SHARE[kernels.instructions] + (x.shape[1] + 1) * 2.0**-24) * F.linear(
        x.abs(), w.abs(), bias.abs() if bias is not None else None
    )
    assert bool((off <= allowed).all())


@given(SHAPES, st.booleans(), st.integers(0, 9))
def test_a_product_is_within_the_error_of_the_algorithm(
    kernels: Kernels, shape: tuple[int, int, int], has_bias: bool, seed: int
):
    m, k, n = shape
    x, w, bias = numbers(m, k, seed=seed), numbers(n, k, seed=seed + 1), numbers(n, seed=seed + 2) if has_bias else None
    assert_close(kernels, kernels.linear(x, kernels.pack(w), n, bias), x, w, bias)


@given(SHAPES, st.integers(0, 9))
def test_a_gate_goes_through_silu_before_it_multiplies(kernels: Kernels, shape: tuple[int, int, int], seed: int):
    m, k, n = shape
    both, w = 3 * numbers(m, 2 * k, seed=seed), numbers(n, k, seed=seed + 1)
    gate, up = both[:, :k], both[:, k:]
    out = kernels.linear(up, kernels.pack(w), n, gate=gate)
    x = F.silu(gate.double()) * up.double()
    off, sums = (out - x @ w.double().T).abs(), x.abs() @ w.double().abs().T
    assert bool((off <= (SHARE[kernels.instructions] + (k + 8) * 2.0**-24) * sums + 1e-30).all())


@pytest.mark.parametrize("value", [-200.0, -88.0, -1e-30, 0.0, 1e-30, 88.0, 200.0, 3e38])
def test_a_gate_at_the_ends_of_its_range(kernels: Kernels, value: float):
    gate, up = torch.full((1, 1), value), torch.ones(1, 1)
    out = kernels.linear(up, kernels.pack(torch.ones(1, 1)), 1, gate=gate)
    torch.testing.assert_close(out, F.silu(gate), rtol=1e-5, atol=1e-34)


@given(DIMENSION, DIMENSION, st.sampled_from([1e-6, 1e-5, 0.1]), st.integers(0, 9))
def test_rows_are_divided_by_their_root_mean_square(kernels: Kernels, m: int, k: int, eps: float, seed: int):
    x, weight = numbers(m, k, seed=seed), numbers(k, seed=seed + 1)
    expected = weight.double() * x.double() * (x.double().pow(2).mean(-1, keepdim=True) + eps).rsqrt()
    torch.testing.assert_close(kernels.rms_norm(x, weight, eps).double(), expected, rtol=2e-6, atol=1e-30)


@given(st.integers(1, 300), st.integers(0, 9))
def test_the_bits_of_a_row_do_not_depend_on_the_others(kernels: Kernels, m: int, seed: int):
    x, w = numbers(m, 530, seed=seed), kernels.pack(numbers(70, 530, seed=seed + 1))
    together = kernels.linear(x, w, 70)
    for i in {0, m // 2, m - 1}:
        assert torch.equal(kernels.linear(x[i : i + 1].contiguous(), w, 70)[0], together[i])


def test_the_bits_do_not_depend_on_the_number_of_threads(kernels: Kernels):
    x, w = numbers(700, 600, seed=1), kernels.pack(numbers(330, 600, seed=2))
    before, outs = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3, 7):
            torch.set_num_threads(n)
            outs.append(kernels.linear(x, w, 330))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(out, outs[0]) for out in outs)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_number_stays_in_its_row(kernels: Kernels, bad: float):
    x, w = numbers(40, 64, seed=1), numbers(33, 64, seed=2)
    whole = kernels.linear(x, kernels.pack(w), 33)
    x[17, 5] = bad
    out = kernels.linear(x, kernels.pack(w), 33)
    assert not out[17].isfinite().any()
    others = [i for i in range(40) if i != 17]
    assert torch.equal(out[others], whole[others])


def test_nothing_is_read_or_written_beside_the_rows(kernels: Kernels):
    m, k, n = 37, 45, 51
    x, w = numbers(m, k, seed=1), kernels.pack(numbers(n, k, seed=2))
    expected = kernels.linear(x, w, n)
    wide = torch.full((m, k + 9), float("nan"))
    wide[:, :k] = x
    around = torch.full((m + 2, n), 7.0)
    kernels.linear(wide[:, :k], w, n, out=around[1:-1])
    assert torch.equal(around[1:-1], expected)
    assert bool((around[[0, -1]] == 7.0).all())


def test_the_process_has_one_openmp_runtime(kernels: Kernels):
    code = (
        f"import torch; from rewardserve.model.backends.native import load; k = load({kernels.instructions!r});"
        "torch.set_num_threads(2); k.linear(torch.ones(512, 512), k.pack(torch.ones(512, 512)), 512);"
        "print(len({l.split()[-1] for l in open('/proc/self/maps') if 'omp' in l.rsplit('/')[-1] and '.so' in l}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"

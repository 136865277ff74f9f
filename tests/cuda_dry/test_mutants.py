"""The dry run notices what it is there for: each mutant of the CUDA path fails where the code as it is passes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from rewardserve.model.backends.packed import scorer, varlen
from rewardserve.model.backends.packed.transfer import to_device
from rewardserve.model.scorer import ScorerError
from tests.cuda_dry.device import WouldFail, fake_cuda, make
from tests.cuda_dry.test_engines import ROWS, packed

Mutate = Callable[[pytest.MonkeyPatch], None]


def _on_the_cpu(values: Any, device: torch.device, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor(values, dtype=dtype)


def ends_of_segments_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "to_device", _on_the_cpu)


def scored_tokens_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scorer, "to_device", _on_the_cpu)


def ends_of_segments_as_int64(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(varlen, "to_device", lambda values, device, dtype=None: to_device(values, device))


def merging_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """`lerp` of bfloat16 by a float32 share."""
    as_it_is = Tensor.float
    monkeypatch.setattr(Tensor, "float", lambda x: x if x.dim() == 3 else as_it_is(x))


def sums_by_query_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The log-sum-exp as `(Q, H)`, where the kernel gives `(H, Q)`."""
    as_it_is = varlen.flash_varlen()

    def turned(*args: Any) -> tuple[Tensor, Tensor]:
        out, lse = as_it_is(*args)
        return out, lse.T

    monkeypatch.setattr(scorer, "varlen_for", lambda network: turned)


def sums_with_the_kernels_padding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory-efficient attention pads the log-sum-exp to a multiple of 32 queries; it must be cut."""
    aten = torch.ops.aten._scaled_dot_product_efficient_attention

    def uncut(query: Tensor, key: Tensor, value: Tensor, is_causal: bool, scale: float) -> tuple[Tensor, Tensor]:
        n = query.shape[1] // key.shape[1]
        key, value = key.repeat_interleave(n, dim=1), value.repeat_interleave(n, dim=1)
        return aten(query, key, value, None, True, 0.0, is_causal, scale=scale)[:2]

    monkeypatch.setattr(scorer, "kernel_for", lambda device: uncut)


def heads_of_keys_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    aten = torch.ops.aten._scaled_dot_product_efficient_attention
    monkeypatch.setattr(
        scorer,
        "kernel_for",
        lambda device: lambda q, k, v, is_causal, scale: aten(q, k, v, None, True, 0.0, is_causal, scale=scale)[:2],
    )


MUTANTS: dict[Mutate, torch.dtype] = {
    ends_of_segments_on_the_cpu: torch.bfloat16,
    scored_tokens_on_the_cpu: torch.bfloat16,
    ends_of_segments_as_int64: torch.bfloat16,
    merging_in_half_precision: torch.bfloat16,
    sums_by_query_first: torch.bfloat16,
    sums_with_the_kernels_padding: torch.float32,
    heads_of_keys_not_repeated: torch.float32,
}


@pytest.mark.parametrize("dtype", set(MUTANTS.values()), ids=str)
def test_the_code_as_it_is_passes(dtype):
    with fake_cuda(dtype):
        assert packed(make("llama", dtype), "llama").score(ROWS).rows


@pytest.mark.parametrize(("mutate", "dtype"), MUTANTS.items(), ids=lambda x: getattr(x, "__name__", str(x)))
def test_a_mutant_is_noticed(mutate, dtype, monkeypatch):
    mutate(monkeypatch)
    with fake_cuda(dtype), pytest.raises((ScorerError, WouldFail, RuntimeError)):
        packed(make("llama", dtype), "llama").score(ROWS)

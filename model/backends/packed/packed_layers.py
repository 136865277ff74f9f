"""Replacements for the forward of layers, with weights packed in the order that a matrix kernel reads.

`MklLinear`: MKL packs weights again for every product; for a batch of some hundred tokens that is a tenth of the work. Here
they are packed once. The packed form serves any number of rows: the number given to the packing is a hint (as CTranslate2 and
Marian use it).
`NativeLinear`, `NativeGatedMlp` and `RmsNorm` use the kernels in C (`native/`): on AMX three products of bfloat16 for one of
float32, on AVX-512 float32.
Shapes: M rows, K in, N out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from rewardserve.model.backends.native import Instructions, Kernels

_ROWS_HINT = 256

_ROWS_A_THREAD: dict[Instructions, int] = {"amx": 128, "avx512": 256}
"""Rows of an MLP at a time: few, so that the activation between its two products, the widest of a network, stays in the
cache; many, so that the weights come from memory seldom."""


class PackedLayer(Protocol):
    """Replacement for the forward of a module."""

    @property
    def module(self) -> Any:
        """The module whose forward is replaced."""
        ...

    @property
    def width(self) -> int:
        """Width of the input."""
        ...

    @property
    def linears(self) -> Sequence[Any]:
        """Layers whose unpacked weights are no longer needed."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """Compute the module's output."""
        ...


class MklLinear:
    """`nn.Linear` with MKL's packed weights."""

    def __init__(self, layer: nn.Linear) -> None:
        self.module, self.linears, self.width = layer, (layer,), layer.in_features
        self._weight: Tensor = torch.ops.mkl._mkl_reorder_linear_weight(layer.weight.detach(), _ROWS_HINT)

    def __call__(self, x: Tensor) -> Tensor:
        """`(..., K) -> (..., N)`."""
        rows = x.reshape(-1, x.shape[-1])
        layer = self.module
        out: Tensor = torch.ops.mkl._mkl_linear(rows, self._weight, layer.weight, layer.bias, len(rows))
        return out.view(*x.shape[:-1], -1)


class NativeLinear:
    """`nn.Linear` by the kernels in C."""

    def __init__(self, layer: nn.Linear, kernels: Kernels) -> None:
        self.module, self.linears, self.width = layer, (layer,), layer.in_features
        self._kernels, self._n, self._bias = kernels, layer.out_features, layer.bias
        self._weight = kernels.pack(layer.weight)

    def __call__(self, x: Tensor) -> Tensor:
        """`(..., K) -> (..., N)`."""
        return self._kernels.linear(_rows(x), self._weight, self._n, self._bias).view(*x.shape[:-1], self._n)


class NativeGatedMlp:
    """`down(silu(gate(x)) * up(x))`: gate and up are one product, and the down product computes `silu(gate) * up` as it reads."""

    def __init__(self, mlp: Any, kernels: Kernels) -> None:
        self.module, self.linears = mlp, (mlp.gate_proj, mlp.up_proj, mlp.down_proj)
        self.width = mlp.gate_proj.in_features
        self._kernels, self._between, self._n = kernels, mlp.gate_proj.out_features, mlp.down_proj.out_features
        self._gate_up = kernels.pack(torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]))
        self._down = kernels.pack(mlp.down_proj.weight)
        self._gate_up_bias = _both(mlp.gate_proj, mlp.up_proj)
        self._down_bias = mlp.down_proj.bias

    def __call__(self, x: Tensor) -> Tensor:
        """`(..., K) -> (..., K)`."""
        rows = _rows(x)
        out = torch.empty(len(rows), self._n)
        n_together = _ROWS_A_THREAD[self._kernels.instructions] * torch.get_num_threads()
        for some, of_out in zip(rows.split(n_together), out.split(n_together), strict=True):
            both = self._kernels.linear(some, self._gate_up, 2 * self._between, self._gate_up_bias)
            gate, up = both[:, : self._between], both[:, self._between :]
            self._kernels.linear(up, self._down, self._n, self._down_bias, gate=gate, out=of_out)
        return out.view(*x.shape[:-1], self._n)


class RmsNorm:
    """Root mean square normalisation in one pass; some models store its weight minus 1 (`offset`)."""

    def __init__(self, norm: Any, kernels: Kernels, offset: float) -> None:
        self.module, self.linears, self.width = norm, (), len(norm.weight)
        self._kernels, self._eps = kernels, float(getattr(norm, "variance_epsilon", None) or norm.eps)
        self._weight = norm.weight.detach() + offset

    def __call__(self, x: Tensor) -> Tensor:
        """`(..., K) -> (..., K)`."""
        return self._kernels.rms_norm(_rows(x), self._weight, self._eps).view(x.shape)


def is_rms_norm(module: Any) -> bool:
    """Whether a module is named as a root mean square normalisation, and has one weight a column."""
    names = [name for name, _ in module.named_parameters()]
    has_eps = bool(getattr(module, "variance_epsilon", None) or getattr(module, "eps", None))
    return type(module).__name__.endswith("RMSNorm") and names == ["weight"] and module.weight.dim() == 1 and has_eps


def is_gated_mlp(module: Any) -> bool:
    """Whether a module has the parts of a gated MLP. Whether it combines them as one is checked by its output."""
    parts = [getattr(module, name, None) for name in ("gate_proj", "up_proj", "down_proj")]
    return all(type(part) is nn.Linear for part in parts) and hasattr(module, "act_fn")


def _rows(x: Tensor) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(-1) == 1 else rows.contiguous()


def _both(gate: nn.Linear, up: nn.Linear) -> Tensor | None:
    if gate.bias is None and up.bias is None:
        return None
    return torch.cat(
        [torch.zeros(each.out_features) if each.bias is None else each.bias.detach() for each in (gate, up)]
    )

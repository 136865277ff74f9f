"""Linear layers whose weights lie ready for the matrix kernel.

MKL brings the weights into the order of its kernel anew for every product; for a batch of some hundred tokens that is a
tenth of the work. Here it is done once. The packed form serves any number of rows: what the packing is told of that
number is a hint (as CTranslate2 and Marian use it). Float32 on a CPU with MKL only; elsewhere nothing is changed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_ROWS_HINT = 256
_TRIED_ROWS = (1, 3, 64, 200, 257)
_TOLERANCE = 1e-4  # of the largest value: the order of sums differs


@dataclass(slots=True, eq=False)
class _Packed:
    """One layer; stands in for its forward."""

    layer: nn.Linear
    weight: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """As `nn.Linear` does it, `(..., K) -> (..., N)`."""
        rows = x.reshape(-1, x.shape[-1])
        out: Tensor = torch.ops.mkl._mkl_linear(rows, self.weight, self.layer.weight, self.layer.bias, len(rows))
        return out.view(*x.shape[:-1], -1)


class PackedWeights:
    """The linear layers of a network, from `install` to `remove`."""

    def __init__(self, backbone: nn.Module) -> None:
        self._packed: list[_Packed] = []
        if not _is_possible():
            return
        layers = [m for m in backbone.modules() if type(m) is nn.Linear and _is_plain(m.weight)]
        if layers and all(_is_right(layer) for layer in {tuple(m.weight.shape): m for m in layers}.values()):
            self._packed = [_Packed(layer, _pack(layer.weight)) for layer in layers]

    def __len__(self) -> int:
        """How many layers; 0 where this is not possible, or was not right."""
        return len(self._packed)

    def install(self) -> None:
        """From now on the layers compute with the packed weights."""
        for each in self._packed:
            each.layer.forward = each

    def remove(self) -> None:
        """The layers are as they were. Not after `release`."""
        for each in self._packed:
            each.layer.__dict__.pop("forward", None)

    def release(self) -> None:
        """Let go of the unpacked weights, of which only the shape is left: a model is not to be held twice."""
        for each in self._packed:
            shape = each.layer.weight.shape
            each.layer.weight = nn.Parameter(torch.empty(1).expand(shape), requires_grad=False)


def _is_possible() -> bool:
    return bool(torch.backends.mkl.is_available()) and hasattr(torch.ops.mkl, "_mkl_reorder_linear_weight")


def _is_plain(weight: Any) -> bool:
    return bool(weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.is_contiguous())


@torch.inference_mode()
def _is_right(layer: nn.Linear) -> bool:
    """Whether the packed form gives the products of this shape for few and many rows."""
    packed = _Packed(layer, _pack(layer.weight))
    for n in _TRIED_ROWS:
        x = torch.linspace(-1.0, 1.0, n * layer.in_features).sin().view(n, -1)
        expected = F.linear(x, layer.weight, layer.bias)
        if not torch.allclose(packed(x), expected, rtol=0.0, atol=_TOLERANCE * max(1e-6, float(expected.abs().max()))):
            return False
    return True


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkl._mkl_reorder_linear_weight(weight.detach(), _ROWS_HINT)
    return packed

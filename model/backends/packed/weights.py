"""Choose the layers of a network that are replaced by packed layers, and their kernel. Float32 on a CPU only.

Every kind of packed layer is compared with the layer that it replaces, once a shape, before it is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from rewardserve.model.backends import MatmulPrecision
from rewardserve.model.backends.native import Instructions, Kernels, KernelsUnavailable, load
from rewardserve.model.backends.packed.packed_layers import (
    MklLinear,
    NativeGatedMlp,
    NativeLinear,
    PackedLayer,
    RmsNorm,
    is_gated_mlp,
    is_rms_norm,
)

_CHECKED_ROWS = (1, 3, 64, 200, 257)
_TOLERANCE = {"highest": 1e-4, "high": 2e-4}
"""Largest difference, relative to the largest value: the order of sums differs, and three products of bfloat16 are off by
more (see `native/amx.c`)."""

_INSTRUCTIONS: dict[MatmulPrecision, tuple[tuple[Instructions, MatmulPrecision], ...]] = {
    "high": (("amx", "high"), ("avx512", "highest")),
    "highest": (("avx512", "highest"),),
}
"""Kernels in C for each requested precision, the fastest first, with the precision that they have."""

_WIDE = 4.0
"""Range of the test inputs: wide enough to reveal a clamp or a saturated activation."""


class PackedWeights:
    """Packed layers in place of linear layers, with the kernels in C also of gated MLPs and norms: from `install` to `remove`.

    `precision` is the precision in use, `note` the reason where the operator could get faster kernels; `kernels` are those
    in C, where they are in use.
    """

    def __init__(self, backbone: nn.Module, asked: MatmulPrecision) -> None:
        self.precision: MatmulPrecision = "highest"
        self.note: str | None = None
        self.kernels: Kernels | None = None
        self._packed_layers: list[PackedLayer] = []
        self._withheld: list[tuple[nn.Linear, nn.Parameter]] = []
        linears = [m for m in backbone.modules() if type(m) is nn.Linear and _is_plain(m.weight)]
        for instructions, precision in _INSTRUCTIONS[asked] if linears else ():
            try:
                kernels = load(instructions)
                self._packed_layers = _native(backbone, linears, kernels, precision)
                self.precision, self.kernels = precision, kernels
                return
            except KernelsUnavailable as error:
                if error.is_actionable:
                    self.note = self.note or str(error)
        if _has_mkl():
            self._packed_layers = _verified_layers(linears, "highest", MklLinear)

    @property
    def kernels_name(self) -> str:
        """Library or instruction set of the matrix products."""
        if self.kernels:
            return self.kernels.instructions
        return "mkl" if self._packed_layers else "torch"

    def __len__(self) -> int:
        """Number of packed layers; 0 where none is possible, or none gave the right output."""
        return len(self._packed_layers)

    def install(self) -> None:
        """Replace the forward of the layers."""
        for each in self._packed_layers:
            each.module.forward = each

    def remove(self) -> None:
        """Restore the layers. Not after `release`."""
        self.restore()
        for each in self._packed_layers:
            each.module.__dict__.pop("forward", None)

    def withhold(self) -> None:
        """Replace the unpacked weights by NaN of the same shape, as after `release`.

        A layer whose weight is read outside its forward (routers do that) then gives no finite score.
        """
        for layer in (layer for each in self._packed_layers for layer in each.linears):
            self._withheld.append((layer, layer.weight))
            layer.weight = nn.Parameter(torch.full((1,), math.nan).expand(layer.weight.shape), requires_grad=False)

    def restore(self) -> None:
        """Put the unpacked weights back. Not after `release`."""
        for layer, weight in self._withheld:
            layer.weight = weight
        self._withheld.clear()

    def release(self) -> None:
        """Free the withheld unpacked weights, so that memory holds each weight once."""
        self._withheld.clear()


def _native(
    backbone: nn.Module, linears: Sequence[nn.Linear], kernels: Kernels, precision: MatmulPrecision
) -> list[PackedLayer]:
    """Pack gated MLPs, all other linear layers, and norms. Raise `KernelsUnavailable` where products are wrong."""
    gated = [m for m in backbone.modules() if is_gated_mlp(m) and all(_is_plain(p) for p in m.parameters())]
    mlps = _verified_layers(gated, precision, lambda mlp: NativeGatedMlp(mlp, kernels))
    covered = {id(layer) for mlp in mlps for layer in mlp.linears}
    rest = [layer for layer in linears if id(layer) not in covered]
    others = _verified_layers(rest, precision, lambda layer: NativeLinear(layer, kernels))
    if len(others) < len(rest):
        raise KernelsUnavailable("its kernels gave other products than torch", is_actionable=True)
    norms = [m for m in backbone.modules() if is_rms_norm(m) and _is_plain(m.weight)]
    in_one_pass = _verified_layers(
        norms, "highest", lambda norm: RmsNorm(norm, kernels, 0.0), lambda norm: RmsNorm(norm, kernels, 1.0)
    )
    return [*mlps, *others, *in_one_pass]


def _verified_layers(
    modules: Sequence[Any], precision: MatmulPrecision, *makers: Callable[[Any], PackedLayer]
) -> list[PackedLayer]:
    """Packed layers for the modules of every kind and shape for which the layer of one of the makers gives the right output."""
    alike: dict[tuple[Any, ...], list[Any]] = {}
    for module in modules:
        alike.setdefault((type(module), *(tuple(p.shape) for p in module.parameters())), []).append(module)
    found: list[PackedLayer] = []
    for group in alike.values():
        make = next((make for make in makers if _matches(group[0], make(group[0]), precision)), None)
        found += [make(module) for module in group] if make else []
    return found


@torch.inference_mode()
def _matches(module: nn.Module, packed_layer: PackedLayer, precision: MatmulPrecision) -> bool:
    """Whether the packed layer gives the module's output, for few and many rows."""
    for n in _CHECKED_ROWS:
        x = _WIDE * torch.linspace(-1.0, 1.0, n * packed_layer.width).mul(7919.0).sin().view(n, -1)
        expected = module(x)
        allowed = _TOLERANCE[precision] * max(1e-6, float(expected.abs().max()))
        if not torch.allclose(packed_layer(x), expected, rtol=0.0, atol=allowed):
            return False
    return True


def _is_plain(weight: Any) -> bool:
    return bool(weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.is_contiguous())


def _has_mkl() -> bool:
    return bool(torch.backends.mkl.is_available()) and hasattr(torch.ops.mkl, "_mkl_reorder_linear_weight")

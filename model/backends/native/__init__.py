"""Bindings of the kernels in C, where they were compiled at installation and this CPU supports them.

`amx.c` and `avx512.c` are compiled by setuptools as optional extensions: without a C compiler the installation succeeds
without them, and `load` raises. They are called through ctypes, which releases the GIL; the C code does not use Python.
"""

from __future__ import annotations

import ctypes
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

Instructions = Literal["amx", "avx512"]
"""Instruction set of the kernels; each is one extension."""

BLOCK_SIZE = 32
"""Rows, columns and depth of a block; packed matrices are padded to a multiple of it."""


class KernelsUnavailable(Exception):
    """The kernels cannot be used; the message has the reason. `is_actionable`: whether the operator can change that."""

    def __init__(self, message: str, *, is_actionable: bool) -> None:
        super().__init__(message)
        self.is_actionable = is_actionable


class Kernels:
    """Kernels of `kernels.h`, which has the algorithms. All tensors are float32 on the CPU, with dense rows.

    Packed matrices are as many bytes as float32; their representation is that of `instructions`.
    """

    def __init__(self, library: ctypes.CDLL, instructions: Instructions) -> None:
        self.instructions = instructions
        pointer, size = ctypes.c_void_p, ctypes.c_int64
        library.rs_scratch.restype = size
        self._pack, self._linear, self._n_scratch = library.rs_pack, library.rs_linear, library.rs_scratch()
        self._pack.argtypes, self._pack.restype = [pointer, size, size, pointer, ctypes.c_int], None
        self._linear.argtypes = [
            pointer,
            pointer,
            size,
            pointer,
            pointer,
            pointer,
            size,
            size,
            size,
            pointer,
            ctypes.c_int,
        ]
        self._linear.restype = None
        self._norm = library.rs_rms_norm
        self._norm.argtypes = [pointer, size, pointer, ctypes.c_float, pointer, size, size, ctypes.c_int]
        self._norm.restype = None
        self._attend, self._attend_work = library.rs_attend, library.rs_attend_work
        self._attend.argtypes = [
            pointer, size, size, size, size, size, ctypes.c_float, pointer, size, pointer, pointer, pointer, size,
            pointer, pointer, pointer, size, ctypes.c_int,
        ]  # fmt: skip
        self._attend.restype = None
        self._attend_work.argtypes, self._attend_work.restype = [size, size], size

    def pack(self, weight: Tensor) -> Tensor:
        """Pack a float32 weight `(N, K)` for the kernel, in as many bytes (with N and K padded to 32)."""
        n, k = weight.shape
        weight = weight.detach().contiguous()
        packed = torch.empty(n_blocks(n) * n_blocks(k) * BLOCK_SIZE * BLOCK_SIZE)
        self._pack(weight.data_ptr(), n, k, packed.data_ptr(), torch.get_num_threads())
        return packed

    def linear(
        self,
        x: Tensor,
        packed: Tensor,
        n: int,
        bias: Tensor | None = None,
        gate: Tensor | None = None,
        out: Tensor | None = None,
    ) -> Tensor:
        """`x (M, K) -> (M, N)`; with a gate of x's shape and strides, of `silu(gate) * x`."""
        (m, k), stride = x.shape, x.stride(0)
        out = torch.empty(m, n) if out is None else out
        scratch = torch.empty(self._n_scratch)
        self._linear(
            x.data_ptr(), gate.data_ptr() if gate is not None else None, stride, packed.data_ptr(),
            bias.data_ptr() if bias is not None else None, out.data_ptr(), m, n, k, scratch.data_ptr(),
            torch.get_num_threads(),
        )  # fmt: skip
        return out

    def rms_norm(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        """`x (M, K) -> (M, K)`: `weight * x / sqrt(mean(x^2) + eps)`, row by row."""
        m, k = x.shape
        out = torch.empty(m, k)
        self._norm(
            x.data_ptr(), x.stride(0), weight.data_ptr(), eps, out.data_ptr(), m, k, torch.get_num_threads()
        )  # fmt: skip
        return out

    def attend(
        self,
        query_HQE: Tensor,
        n_groups: int,
        scale: float,
        ranges_R8: Tensor,
        segments_S4: Tensor,
        chains: Tensor,
        blocks_B2: Tensor,
        n_columns: int,
    ) -> Tensor:
        """`(Q, H, E)`: attention of the segments of a packed row. The tables, int64, are those of `rs_attend`."""
        n_heads, n_queries, width = query_HQE.shape
        out = torch.empty(n_queries, n_heads, width)
        n_threads = torch.get_num_threads()
        n_steps = int(ranges_R8[-1, -1]) + n_blocks(int(ranges_R8[-1, -2]))
        packed = torch.empty(2 * n_steps * n_groups * n_blocks(width) * BLOCK_SIZE * BLOCK_SIZE)
        work = torch.empty(n_threads * self._attend_work(n_columns, width))
        self._attend(
            query_HQE.data_ptr(), query_HQE.stride(1), query_HQE.stride(0), n_heads, n_groups, width, scale,
            ranges_R8.data_ptr(), len(ranges_R8), segments_S4.data_ptr(), chains.data_ptr(), blocks_B2.data_ptr(),
            len(blocks_B2), out.data_ptr(), packed.data_ptr(), work.data_ptr(), n_columns, n_threads,
        )  # fmt: skip
        return out


@cache
def load(instructions: Instructions) -> Kernels:
    """The kernels for these instructions. Raise `KernelsUnavailable`."""
    name = _NAMES[instructions]
    if _CPU_FLAGS[instructions] not in _cpu_flags():
        raise KernelsUnavailable(f"this CPU has no {name}", is_actionable=False)
    spec = find_spec(f"rewardserve.model.backends.native._{instructions}")
    if spec is None or spec.origin is None:
        raise KernelsUnavailable(
            f"the kernels for {name} were not compiled: there was no C compiler at installation", is_actionable=True
        )
    try:
        library = ctypes.CDLL(spec.origin)
    except OSError as error:
        raise KernelsUnavailable(f"the kernels for {name} cannot be loaded: {error}", is_actionable=True) from error
    ready = library.rs_ready()
    if ready < 0:
        raise KernelsUnavailable(f"the operating system does not allow {name}", is_actionable=True)
    if not ready:
        raise KernelsUnavailable(
            f"this CPU has not all of the AVX-512 that the kernels for {name} use", is_actionable=False
        )
    return Kernels(library, instructions)


_NAMES: dict[Instructions, str] = {"amx": "AMX", "avx512": "AVX-512"}
_CPU_FLAGS: dict[Instructions, str] = {"amx": "amx_bf16", "avx512": "avx512f"}


@cache
def _cpu_flags() -> frozenset[str]:
    try:
        return frozenset(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return frozenset()


def n_blocks(n: int) -> int:
    """Number of blocks for n rows or columns."""
    return -(-n // BLOCK_SIZE)

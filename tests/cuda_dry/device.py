"""A CUDA device that computes nothing: devices, dtypes and shapes of every call are checked.

`torch._subclasses.FakeTensorMode` runs the meta functions of a CUDA build of torch; no driver is needed. Four things have a
stand-in here: pinned memory, values that are read back (every number is one, every truth False), the compute capability, and the
checks that attention kernels make when they run, which their meta functions leave out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModel

from rewardserve.model.network import RewardNetwork, attention_for
from tests.support.tiny import tiny_config
from tests.unit.model.test_network import VOCAB

if torch.version.cuda is None:
    pytest.skip("needs a CUDA build of torch (no GPU): make test-cuda-dry", allow_module_level=True)

HALF = (torch.bfloat16, torch.float16)
_READ_BACK = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default)


class WouldFail(Exception):
    """What the kernel on a real device would refuse or compute wrongly."""


def _one_device(name: str, tensors: Sequence[Tensor]) -> None:
    devices = {str(tensor.device) for tensor in tensors}
    if len(devices) > 1:
        raise WouldFail(f"{name} is given tensors on {' and '.join(sorted(devices))}")


def _check_varlen(query: Tensor, key: Tensor, value: Tensor, ends_q: Tensor, ends_k: Tensor, *rest: Any) -> None:
    """Demands of variable-length flash attention (tokens first): half precision, int32 ends, whole groups of heads."""
    longest_q, longest_k = rest[:2]
    _one_device("varlen attention", (query, key, value, ends_q, ends_k))
    if not (query.dtype == key.dtype == value.dtype and query.dtype in HALF):
        raise WouldFail(f"varlen attention is given {query.dtype}, {key.dtype} and {value.dtype}")
    if (ends_q.dtype, ends_k.dtype) != (torch.int32, torch.int32) or ends_q.shape != ends_k.shape:
        raise WouldFail(
            f"the ends of segments are {ends_q.dtype} {tuple(ends_q.shape)}, {ends_k.dtype} {tuple(ends_k.shape)}"
        )
    if (
        query.dim() != 3
        or key.shape != value.shape
        or query.shape[-1] != key.shape[-1]
        or query.shape[1] % key.shape[1]
    ):
        raise WouldFail(
            f"varlen attention is given shapes {tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)}"
        )
    if query.shape[-1] > 256 or query.shape[-1] % 8 or any(x.stride(-1) != 1 for x in (query, key, value)):
        raise WouldFail(
            f"heads of width {query.shape[-1]}, strides {query.stride()}: at most 256, a multiple of 8, contiguous"
        )
    if not (0 < longest_q <= len(query) and 0 < longest_k <= len(key)):
        raise WouldFail(f"longest segments {longest_q}, {longest_k} of {len(query)} queries and {len(key)} keys")


def _check_efficient(query: Tensor, key: Tensor, value: Tensor, *_: Any) -> None:
    """Demands of memory-efficient attention: one dtype, as many key heads as query heads."""
    _one_device("efficient attention", (query, key, value))
    if not query.dtype == key.dtype == value.dtype:
        raise WouldFail(f"efficient attention is given {query.dtype}, {key.dtype} and {value.dtype}")
    if query.shape[:2] != key.shape[:2] or key.shape[:3] != value.shape[:3]:
        raise WouldFail(f"efficient attention is given {tuple(query.shape)}, {tuple(key.shape)}, {tuple(value.shape)}")


def _numpy(tensor: Tensor) -> np.ndarray[Any, Any]:
    if tensor.device.type != "cpu" or tensor.dtype in HALF:
        raise WouldFail(f"numpy is given {tensor.dtype} on {tensor.device}")
    return np.ones(tuple(tensor.shape), dtype=str(tensor.dtype).removeprefix("torch."))


class Checked(TorchDispatchMode):
    """Answer what is read back, check attention kernels, and count their calls in `n_calls`."""

    def __init__(self) -> None:
        super().__init__()
        self.n_calls = {"varlen": 0, "efficient": 0}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in _READ_BACK:
            return args[0].dtype != torch.bool and 1
        name = str(func)
        if name.startswith("torch_attn._varlen_attn"):
            _check_varlen(*args)
            self.n_calls["varlen"] += 1
        elif name.startswith("aten._scaled_dot_product_efficient_attention"):
            _check_efficient(*args)
            self.n_calls["efficient"] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def fake_cuda(dtype: torch.dtype = torch.bfloat16) -> Iterator[Checked]:
    """Within: what is made on `cuda` is checked like on a Hopper card, and nothing is computed."""
    # torch's meta function of the grouped product knows bfloat16 alone: experts in float32 are checked in their loop.
    capability = (9, 0) if dtype == torch.bfloat16 else (7, 5)
    stand_ins = (
        mock.patch.object(torch.Tensor, "pin_memory", lambda self, *_: self),
        mock.patch.object(FakeTensor, "tolist", lambda self: np.ones(tuple(self.shape)).tolist()),
        mock.patch.object(FakeTensor, "numpy", _numpy),
        mock.patch.object(torch.cuda, "get_device_capability", return_value=capability),
        mock.patch.object(FakeTensorMode, "avoid_device_init", True),  # also where a test says that there is a device
        # A tensor of one element keeps its value, which would then really be moved to the device.
        mock.patch.object(fake_tensor, "CONSTANT_NUMEL_LIMIT", 0),
    )
    with ExitStack() as stack:
        for stand_in in stand_ins:
            stack.enter_context(stand_in)
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        yield stack.enter_context(Checked())


def make(architecture: str, dtype: torch.dtype, **overrides: Any) -> RewardNetwork:
    """A network of this architecture on the fake device. A module's `.to(dtype)` fails there, so it is made in its dtype."""
    config = tiny_config(architecture, VOCAB, **overrides)
    torch.set_default_dtype(dtype)
    try:
        with torch.device("cuda"):
            backbone = AutoModel.from_config(config, attn_implementation=attention_for(config))
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("cuda"):
        return RewardNetwork.create(backbone).eval()

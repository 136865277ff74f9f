"""Keep the heap pages of large activations between batches, and place long-lived tensors outside the heap.

glibc returns every freed block above a threshold to the kernel, and the next batch faults all of its pages in again
(mallopt(3)). The thresholds are set here and not in start scripts, so that they hold however the process was started.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
from collections.abc import Sequence

import torch
from torch import Tensor

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h
_SETTINGS = {_MMAP_THRESHOLD: 2**30, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**26}
_LINE = 64  # bytes, of the CPU's caches
_OPERATOR_VARIABLES = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def set_malloc_thresholds() -> bool:
    """Set glibc's thresholds for this process. Return False without a change under another libc or if the operator set them."""
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _OPERATOR_VARIABLES):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(parameter, value) == 1 for parameter, value in _SETTINGS.items())


def copy_to_own_pages(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copy CPU tensors into separate pages, which return to the kernel when the last copy is freed; keep tensors of a device.

    In the heap, long-lived copies would fragment the memory that the activations of the batches use.
    """
    if any(t.device.type != "cpu" for t in tensors):
        return list(tensors)
    sizes = [-(-t.nbytes // _LINE) * _LINE for t in tensors]
    pages = torch.frombuffer(mmap.mmap(-1, max(1, sum(sizes))), dtype=torch.uint8)
    copies, at = [], 0
    for t, size in zip(tensors, sizes, strict=True):
        copies.append(pages[at : at + t.nbytes].view(t.dtype).view(t.shape).copy_(t))
        at += size
    return copies

"""Big activations stay with the process between two batches, and what is kept for long lies elsewhere.

glibc gives every block above a threshold back to the kernel when it is freed, and the next batch faults all of its pages
in again (mallopt(3)). That is a matter of this process, however it was started, so it is set here and not in start scripts.
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
_OPERATORS_OWN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def set_malloc_thresholds() -> bool:
    """Set glibc's thresholds for this process. False, and nothing is done, elsewhere or where the operator has set them."""
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _OPERATORS_OWN):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(parameter, value) == 1 for parameter, value in _SETTINGS.items())


def copy_to_own_pages(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Copies in pages of their own, which the kernel has back when the last of them goes. Tensors of a device stay as they are.

    Between the activations of two batches they would be islands in the heap, and what is between those fits nothing.
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

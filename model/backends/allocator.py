"""Big activations stay with the process between two batches.

glibc gives every block above a threshold back to the kernel when it is freed, and the next batch faults all of its pages
in again (mallopt(3)). That is a matter of this process, however it was started, so it is set here and not in start scripts.
"""

from __future__ import annotations

import ctypes
import os
import platform

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD = -1, -2, -3  # malloc.h
_SETTINGS = {_MMAP_THRESHOLD: 2**30, _TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 2**26}
_OPERATORS_OWN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_", "GLIBC_TUNABLES")


def keep_big_blocks() -> bool:
    """Set glibc's thresholds for this process. False, and nothing is done, elsewhere or where the operator has set them."""
    if platform.libc_ver()[0] != "glibc" or any(name in os.environ for name in _OPERATORS_OWN):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(mallopt(parameter, value) == 1 for parameter, value in _SETTINGS.items())

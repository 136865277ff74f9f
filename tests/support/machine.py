"""Features of this machine, for tests that need them."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

from rewardserve.model.backends.native import Instructions, KernelsUnavailable, load


def _why_no_kernels(instructions: Instructions) -> str:
    try:
        load(instructions)
    except KernelsUnavailable as why:
        return str(why)
    return ""


needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM: `make test-vllm` has it")

needs_amx = pytest.mark.skipif(bool(_why_no_kernels("amx")), reason=_why_no_kernels("amx"))
needs_avx512 = pytest.mark.skipif(bool(_why_no_kernels("avx512")), reason=_why_no_kernels("avx512"))
"""The kernels in C need a CPU with these and a compiler at installation; the code that they replace is tested everywhere."""

KERNELS = (pytest.param("amx", marks=needs_amx), pytest.param("avx512", marks=needs_avx512))

in_test_faults = pytest.mark.skipif(not os.environ.get("TEST_FAULTS"), reason="slow: `make test-faults`")
"""Such tests also need root for small file systems and memory limits, slowhttptest and libfaketime."""

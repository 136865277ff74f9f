"""What this machine has, for tests that need it."""

from __future__ import annotations

import os
from importlib.util import find_spec

import pytest

from rewardserve.model.backends.native import KernelsUnavailable, load


def _why_no_kernels() -> str:
    try:
        load()
    except KernelsUnavailable as why:
        return str(why)
    return ""


needs_vllm = pytest.mark.skipif(find_spec("vllm") is None, reason="needs vLLM: `make test-vllm` has it")

needs_amx = pytest.mark.skipif(bool(_why_no_kernels()), reason=_why_no_kernels())
"""The kernels in C need a CPU with AMX and a compiler at installation; what they stand in for is tested everywhere."""

in_test_faults = pytest.mark.skipif(not os.environ.get("TEST_FAULTS"), reason="takes its time: `make test-faults`")
"""Beside what a machine may lack: root for small file systems and memory limits, slowhttptest, libfaketime."""

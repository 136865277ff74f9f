"""Whether big blocks stay with the process: counted in page faults, in processes of their own."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

FAULTS = """
import resource, torch
from model.backends.allocator import keep_big_blocks
done = keep_big_blocks() if {set_it} else False
def batch(): return [torch.ones(4_000_000) for _ in range(3)]
for _ in range(3): batch()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10): batch()
print(int(done), resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(*, set_it: bool, **env: str) -> tuple[bool, int]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    code = FAULTS.format(set_it=set_it)
    out = subprocess.run(
        [sys.executable, "-c", code],
        env={**clean, "OMP_NUM_THREADS": "1", **env},
        capture_output=True,
        text=True,
        check=True,
    )
    done, n = out.stdout.split()
    return done == "1", int(n)


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc gives its blocks back and says how to keep them"
)
def test_the_pages_of_a_batch_are_faulted_in_once():
    done, n = faults(set_it=True)
    assert done
    # Ten batches of three blocks of 16 MB are 117,000 pages of 4 kB.
    assert n < 12_000


def test_what_the_operator_has_set_stays():
    assert faults(set_it=True, MALLOC_TOP_PAD_="0")[0] is False

"""Large blocks stay with the process: counted in page faults, in separate processes."""

from __future__ import annotations

import gc
import os
import platform
import subprocess
import sys

import pytest
import torch

from rewardserve.model.backends.allocator import copy_to_own_pages

pytestmark = pytest.mark.slow

FAULTS = """
import resource, torch
from rewardserve.model.backends.allocator import set_malloc_thresholds
done = set_malloc_thresholds() if {set_it} else False
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


KEPT = """
import random, torch
from rewardserve.model.backends.allocator import copy_to_own_pages, set_malloc_thresholds
set_malloc_thresholds()
def rss(): return int(open("/proc/self/statm").read().split()[1]) * 4096 / 2**20
rng, kept = random.Random(1), []
def batch():
    n = rng.randrange(200, 2000)
    activations = [torch.ones(n, 512) for _ in range(4)]
    copies = [torch.ones(rng.randrange(50, 600), 256) for _ in range(12)]
    kept.append({keep})
    del kept[:-20]
for _ in range(30): batch()
before = rss()
for _ in range(300): batch()
print(rss() - before)
"""


def growth_mib(keep: str) -> float:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    done = subprocess.run(
        [sys.executable, "-c", KEPT.format(keep=keep)], env=clean, capture_output=True, text=True, check=True
    )
    return float(done.stdout)


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="only Linux says how much memory is resident")
def test_what_is_kept_in_pages_of_its_own_does_not_make_the_heap_grow():
    assert growth_mib("copy_to_own_pages(copies)") < 30


def test_copies_in_pages_of_their_own_are_the_same_and_outlive_each_other():
    originals = [torch.arange(7), torch.randn(3, 5).to(torch.bfloat16), torch.randn(2, 1, 9), torch.zeros(0, 4)]
    copies = copy_to_own_pages(originals)
    last = copies[2]
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(copies, originals, strict=True))
    originals[2].zero_()
    del copies
    gc.collect()
    assert last.abs().sum() > 0
    last.add_(1)

"""Free heap pages return to the kernel, and used ones stay."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

GIVEN_BACK = """
import threading
from rewardserve.model.backends.allocator import set_malloc_thresholds
from rewardserve.model.backends.memory import trim_heap, host_memory
set_malloc_thresholds()
rooms, done = [threading.Barrier(9), threading.Barrier(9)], []
def a_models_thread():
    used, kept = [bytearray(50_000) for _ in range(400)], bytearray(b"kept") * 10_000
    rooms[0].wait()
    del used
    rooms[1].wait()
    done.append(kept)
threads = [threading.Thread(target=a_models_thread) for _ in range(8)]
before = host_memory()[0]
for thread in threads: thread.start()
for room in rooms: room.wait()
for thread in threads: thread.join()
freed = host_memory()[0]
trim_heap()
assert all(kept == b"kept" * 10_000 for kept in done)
print(freed - before, host_memory()[0] - before)
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc keeps what threads have freed, and gives it back"
)
def test_what_threads_that_have_ended_had_freed_goes_back_to_the_kernel():
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    done = subprocess.run([sys.executable, "-c", GIVEN_BACK], env=clean, capture_output=True, text=True, check=True)
    kept, left = map(int, done.stdout.split())
    assert kept > 8 * 400 * 50_000 / 2, "glibc has kept it"
    assert left < kept / 10

"""A process that is started for a measurement ends with the program that measures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.service_server import wait_until

PROGRAM = """
import sys, time
from rewardserve.bench.server_process import interrupt_at_sigterm, start_bound
if sys.argv[1] == "handled":
    interrupt_at_sigterm()
child = start_bound([sys.executable, "-c", "import time; time.sleep(600)"])
try:
    print(child.pid, flush=True)
    time.sleep(600)
except KeyboardInterrupt:
    sys.exit(7)
"""


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("handled", "number", "code"),
    [("handled", signal.SIGTERM, 7), ("", signal.SIGTERM, -signal.SIGTERM), ("", signal.SIGKILL, -signal.SIGKILL)],
)
def test_a_bound_process_ends_with_its_parent_however_that_ends(handled, number, code):
    parent = subprocess.Popen([sys.executable, "-c", PROGRAM, handled], stdout=subprocess.PIPE, text=True)
    with parent:
        child = int(parent.stdout.readline())
        assert is_alive(child)
        os.kill(parent.pid, number)
        assert parent.wait(30) == code
    wait_until(lambda: not is_alive(child), seconds=30)

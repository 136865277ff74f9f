"""Registered processes end when the server dies in any way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from rewardserve.model.backends.process_reaper import ProcessReaper
from tests.support.service_server import ROOT

STAYS = "import time; time.sleep(600)"
SERVER = """
import subprocess, sys, pathlib
from rewardserve.model.backends.process_reaper import ProcessReaper
reaper = ProcessReaper()
stays = "import time; print('here', flush=True); time.sleep(600)"
child = subprocess.Popen([sys.executable, "-c", stays], pass_fds=[int(sys.argv[1])])
reaper.end(child.pid)
reaper.remove(pathlib.Path(sys.argv[2]))
print("watched", flush=True)
child.wait()
"""


@pytest.fixture
def child():
    process = subprocess.Popen([sys.executable, "-c", STAYS])
    yield process
    process.kill()
    process.wait()


def test_whoever_is_left_is_told_to_end(child):
    reaper = ProcessReaper()
    reaper.end(child.pid)
    reaper.close()
    assert child.wait(30) == -signal.SIGTERM


def test_who_has_ended_before_is_no_trouble(child):
    reaper = ProcessReaper()
    reaper.end(child.pid)
    child.kill()
    child.wait()
    reaper.end(child.pid)  # no process has this number any more
    reaper.close()


def test_a_server_that_is_killed_takes_its_engine_and_its_folder_with_it(tmp_path):
    folder = tmp_path / "written again"
    folder.mkdir()
    (folder / "weights").write_text("large")
    alive, held = os.pipe()
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(held), str(folder)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=[held],
    )
    os.close(held)
    assert {server.stdout.readline(), server.stdout.readline()} == {"here\n", "watched\n"}
    server.kill()
    server.wait()
    assert os.read(alive, 1) == b"", "the last who held the other end, the engine, is gone"
    assert server.stdout.read() == ""  # the reaper's own end comes last
    server.stdout.close()
    os.close(alive)
    assert not folder.exists()

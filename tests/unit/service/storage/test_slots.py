"""Processes that share a folder have a subfolder each, and a killed one leaves its subfolder to the next."""

from __future__ import annotations

import subprocess
import sys
from contextlib import ExitStack

import pytest

from rewardserve.service.storage import slots
from rewardserve.service.storage.slots import claimed_slot

HOLD = """
import sys, time
from pathlib import Path
from rewardserve.service.storage.slots import claimed_slot
with claimed_slot(Path(sys.argv[1])) as slot:
    print(slot.name, flush=True)
    time.sleep(600)
"""


def test_the_first_free_slot_is_claimed_and_freed(tmp_path):
    with claimed_slot(tmp_path) as one, claimed_slot(tmp_path) as two:
        assert (one.name, two.name) == ("0", "1")
        assert one.stat().st_mode & 0o777 == 0o700
    with claimed_slot(tmp_path) as again:
        assert again == one


def test_a_killed_process_leaves_its_slot_to_the_next(tmp_path):
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "0\n"
        with claimed_slot(tmp_path) as slot:
            assert slot.name == "1"
        other.kill()
        other.wait()
        with claimed_slot(tmp_path) as slot:
            assert slot.name == "0"


def test_there_is_a_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(slots, "MAX_SLOTS", 2)
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(claimed_slot(tmp_path))
        with pytest.raises(OSError, match="taken"):
            stack.enter_context(claimed_slot(tmp_path))


def test_a_folder_that_is_gone_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), claimed_slot(tmp_path / "gone"):
        pass

"""CPU time that others took during a measurement, read from files as the kernel writes them."""

from __future__ import annotations

import math
from dataclasses import astuple

import pytest

from rewardserve.bench import contention as module
from rewardserve.bench.contention import Contention, CpuTimes, contention, read_cpu_times

STAT = """cpu  900 0 0 900 0 0 0 0 0 0
cpu0 100 10 20 600 40 5 5 20 7 7
cpu1 200 0 0 500 0 0 0 0 0 0
cpu2 999 0 0 0 0 0 0 999 0 0
intr 5
"""


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "STAT", tmp_path / "stat")
    monkeypatch.setattr(module, "CGROUP", tmp_path / "cpu.stat")
    monkeypatch.setattr(module, "_TICKS", 100)
    (tmp_path / "stat").write_text(STAT)
    return tmp_path


def test_only_the_usable_cores_count(files):
    (files / "cpu.stat").write_text("usage_usec 5\nthrottled_usec 2500000\n")
    two, one = read_cpu_times([0, 1]), read_cpu_times([0])
    assert astuple(two) == pytest.approx((15.0, 3.4, 0.2, 2.5))
    assert astuple(one) == pytest.approx((8.0, 1.4, 0.2, 2.5))


def test_without_a_control_group_nothing_is_throttled_and_without_proc_nothing_is_known(files):
    assert read_cpu_times([1]).throttled_s == 0.0
    assert read_cpu_times([7]) is None
    (files / "stat").unlink()
    assert read_cpu_times([0]) is None
    assert contention(None, CpuTimes(1, 1, 1, 1), 0.0, 1.0) == Contention(None, None, None)


def test_own_time_is_not_that_of_others():
    before, after = CpuTimes(100, 50, 1, 0), CpuTimes(120, 66, 2, 3)
    assert contention(before, after, own_s=12.0, wall_s=10.0) == Contention(steal=0.05, others=0.2, throttled=0.3)
    assert contention(before, after, own_s=17.0, wall_s=10.0).others == 0.0
    assert contention(before, after, own_s=math.nan, wall_s=10.0).others is None, "a server that runs elsewhere"


def test_a_busy_machine_is_named_with_its_numbers():
    assert Contention(0.02, 0.1, 0.02).warnings() == []
    assert Contention(None, None, None).warnings() == []
    assert Contention(0.05, 0.2, 0.3).warnings() == [
        "the hypervisor gave 5% of the CPU time to other guests (steal)",
        "other processes used 20% of the CPU time",
        "the CPU limit of this container held it back for 30% of the time",
    ]

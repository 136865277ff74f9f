"""slowhttptest, the tool that people attack servers with, against a live server while honest clients go on scoring."""

from __future__ import annotations

import shutil
import subprocess
import threading
import time

import pytest

from tests.support.load_clients import LoadClients
from tests.support.machine import in_test_faults
from tests.support.service_server import Server

pytestmark = [
    in_test_faults,
    pytest.mark.skipif(
        shutil.which("slowhttptest") is None, reason="slowhttptest is not installed (Debian: slowhttptest)"
    ),
]
ATTACKERS, SECONDS = 1000, 20
ATTACKS = {
    "slow heads": ["-H", "-i", "1"],
    "slow bodies": ["-B", "-i", "1", "-s", "8192", "-f", "application/json"],
    "slow readers": ["-X", "-n", "2", "-w", "512", "-y", "1024", "-z", "32", "-k", "3"],
}


def goodput(crowd, seconds):
    """Answers a second over so long."""
    before, began = crowd.book.counts["answered"], time.monotonic()
    threading.Event().wait(seconds)
    return (crowd.book.counts["answered"] - before) / (time.monotonic() - began)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("attack", ATTACKS)
def test_honest_clients_go_on_scoring_under(attack, tmp_path, capsys):
    flags = ["--backend=echo", "--head-timeout-s=5", "--body-timeout-s=5", f"--max-connections={ATTACKERS // 2}"]
    with Server(*flags, "--log-level=warning") as server, LoadClients(server.url, 8, gives_up=False) as crowd:
        crowd.wait_for(50)
        before = goodput(crowd, 5)
        command = ["slowhttptest", *ATTACKS[attack], "-c", str(ATTACKERS), "-r", "300", "-l", str(SECONDS), "-u"]
        attackers = subprocess.Popen([*command, f"{server.url}/score"], stdout=subprocess.DEVNULL, cwd=tmp_path)
        threading.Event().wait(3)  # for most of them to be there
        during = goodput(crowd, SECONDS - 6)
        attackers.wait(120)
        after = goodput(crowd, 5)
        slow, counts = max(crowd.book.seconds), crowd.book.counts
        ends = {why: server.metric("rewardserve_connections_ended_total", reason=why)
                for why in ("evicted", "slow_head", "slow_reader", "limit_reached")}  # fmt: skip
        with capsys.disabled():
            print(f"\n{attack}: goodput {before:.0f}, {during:.0f}, {after:.0f} a second before, during, after; "
                  f"longest {slow:.2f} s; {dict(counts)}; ended {ends}")  # fmt: skip
        server.signal()
        assert server.ended() == 0
    assert crowd.book.wrong == []
    # The attackers and whoever else is on this machine take their share of the same cores.
    assert during > 0.25 * before, "honest clients are starved"
    assert slow < 5.0
    assert counts.total() - counts["answered"] < 0.01 * counts["answered"]

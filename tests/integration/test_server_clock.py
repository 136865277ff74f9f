"""Clocks that are set, and processes that are suspended: no deadline moves, nobody is taken for hanging, no number is wrong."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rewardserve.model.backends.echo import echo_score
from tests.support.machine import in_test_faults
from tests.support.service_server import Server, drill, wait_until

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
YEAR_S = 365 * 86_400


def ask(server, text, **headers):
    """The raw score, after a look that it is the right one."""
    response = server.score({"text": text}, **headers)
    assert response.status_code == 200, response.text
    (result,) = response.json()["results"]
    assert result["raw"] == echo_score((*text.encode(), 0))


def seconds_measured(server):
    names = "request_seconds_sum", "queue_seconds_sum", "forward_seconds_sum", "encode_seconds_sum"
    return [server.metric(f"rewardserve_{name}") for name in names]


@pytest.mark.parametrize("jump", [YEAR_S, -YEAR_S])
def test_a_wall_clock_that_jumps_moves_no_deadline_and_no_figure(jump):
    with drill(f"time-jumps:{jump}") as server:
        for i in range(10):
            ask(server, f"text {i}", x_deadline_ms="30000")
        assert all(0.0 <= seconds < 60.0 for seconds in seconds_measured(server))
        assert server.client.get("/readyz").status_code == server.client.get("/livez").status_code == 200


@in_test_faults
@pytest.mark.skipif(FAKETIME is None, reason="libfaketime is not installed (Debian: faketime)")
def test_a_machine_whose_clock_is_set_to_and_fro_serves_on(tmp_path):
    offset = tmp_path / "offset"
    offset.write_text("+0")
    env = {
        "LD_PRELOAD": str(FAKETIME), "FAKETIME_TIMESTAMP_FILE": str(offset), "FAKETIME_NO_CACHE": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }  # fmt: skip
    with Server("--backend=echo", env=env) as server:
        for i, days in enumerate(("+0", "+400d", "-400d", "+0")):
            offset.write_text(days)
            ask(server, f"text {i}", x_deadline_ms="30000")
            ask(server, f"again {i}")
        assert all(0.0 <= seconds < 60.0 for seconds in seconds_measured(server))
        server.signal()
        assert server.ended() == 0


def test_a_process_that_is_suspended_keeps_its_deadlines_and_is_not_taken_for_hanging(tmp_path):
    """Suspended for longer than it takes a forward to count as lost."""
    gate = str(tmp_path / "gate")
    os.mkfifo(gate)
    timeout_s, suspended_s = 1.0, 4.0
    with drill(f"forward-waits:{gate}", f"--scorer-timeout-s={timeout_s}") as server, ThreadPoolExecutor(4) as crowd:
        patient = crowd.submit(ask, server, "patient")
        with open(gate, "wb"):
            late = crowd.submit(server.score, {"text": "late"}, x_deadline_ms="1000")
            wait_until(lambda: server.metric("rewardserve_queue_samples") == 1)
            server.signal(signal.SIGSTOP)
            threading.Event().wait(suspended_s)  # what is tested is time that really passes
            server.signal(signal.SIGCONT)
            assert late.result().status_code == 504
        patient.result()
        ask(server, "afterwards")
        assert server.metric("rewardserve_scorer_hanging") == 0
        assert server.client.get("/livez").status_code == 200
        assert "scorer_state" not in server.log


def test_faketime_moves_the_clock_here():
    """Otherwise the test with it would say nothing."""
    if FAKETIME is None or shutil.which("date") is None:
        pytest.skip("libfaketime is not installed (Debian: faketime)")
    import subprocess

    env = os.environ | {"LD_PRELOAD": str(FAKETIME), "FAKETIME": "+400d"}
    moved, plain = (
        int(subprocess.run(["date", "+%s"], env=e, capture_output=True, check=True).stdout) for e in (env, os.environ)
    )
    assert 399 * 86_400 < moved - plain < 401 * 86_400

"""A disk that is full: scores go on, what cannot be written is said and not half there, and a start that needs space says so."""

from __future__ import annotations

import http.client
import json
import random
import subprocess
import sys

import pytest

from tests.integration.test_server_tripwires import WATCH_ALL, begging, train
from tests.support.machine import in_test_faults
from tests.support.service_server import LISTENING, ROOT, Server, run_to_end, wait_until
from tests.support.small_disk import SmallDisk, why_none

pytestmark = pytest.mark.skipif(bool(why_none()), reason=why_none())
BODY = json.dumps({"samples": [{"text": "x"}]})


@pytest.fixture
def disk(tmp_path):
    with SmallDisk(tmp_path / "disk", 1) as mounted:
        yield mounted


def test_a_log_that_cannot_be_written_fails_no_request_and_no_connection(disk):
    with open(disk.folder / "log", "w") as log:
        command = [sys.executable, "-m", "rewardserve", "serve", "--port=0", "--backend=echo"]
        process = subprocess.Popen(command, cwd=ROOT, stderr=log)
    try:
        text = (disk.folder / "log").read_text
        wait_until(lambda: process.poll() is None and "is ready" in text(), seconds=60)
        disk.fill()
        host, _, port = LISTENING.search(text()).group(1).removeprefix("http://").partition(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=60)
        connection.connect()
        opened = connection.sock
        for _ in range(200):
            connection.request("POST", "/score", BODY, {"content-type": "application/json"})
            reply = connection.getresponse()
            assert (reply.status, reply.read()[:1]) == (200, b"{")
        assert connection.sock is opened
        connection.close()
        disk.empty()
        process.terminate()
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def test_evidence_and_references_that_cannot_be_written_are_said_and_not_half_there(disk):
    folders = [f"--tripwires.{kind}-dir={disk.folder / kind}" for kind in ("evidence", "state")]
    with Server(*WATCH_ALL, *folders) as server:
        disk.fill()
        rng = random.Random(9)
        train(server, 40, lambda: begging(rng))
        tripped = server.client.get("/tripwires/ppo-7/details").json()["tripped"]
        assert "judge_injection" in {t["wire"] for t in tripped}
        wait_until(lambda: server.client.get("/livez").is_success and "evidence_not_written" in server.log)
        disk.empty()
        server.signal()
        assert server.ended() == 0
    assert 1 <= server.log.count("evidence_not_written") <= len(tripped), "once an alert, not once a request"
    assert server.log.count("state_save_failed") <= 2
    assert "No space left on device" in server.log
    assert list((disk.folder / "evidence").iterdir()) == [], "half a file would be taken for all"


@in_test_faults
@pytest.mark.timeout(400)
def test_a_cache_without_space_for_the_default_model_ends_the_start_in_words_and_leaves_nothing(tmp_path):
    with SmallDisk(tmp_path / "cache", 20) as disk:
        exit_code, output = run_to_end(
            "--port=0", "--device=cpu", env={"XDG_CACHE_HOME": str(disk.folder)}, patience_s=300
        )
        assert (exit_code, "Traceback" in output) == (1, False)
        assert "set XDG_CACHE_HOME" in output
        assert list((disk.folder / "rewardserve").iterdir()) == []

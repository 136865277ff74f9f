"""What reaches whom, by a real Alertmanager with the routes as they are shipped."""

from __future__ import annotations

import json
import queue
import shutil
import socket
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import httpx
import pytest

from tests.support.service_server import PATIENCE_S

SHIPPED = Path(__file__).resolve().parents[3] / "monitoring/alertmanager/alertmanager.yml"
PROGRAM = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
JOB = {"job": "rewardserve"}

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="Alertmanager is not installed")


class Messages(queue.SimpleQueue):
    """What was posted to `url`."""

    url = ""


@pytest.fixture
def heard():
    """Messages of Alertmanager: groups of alerts, as they come."""
    messages = Messages()

    class Ear(BaseHTTPRequestHandler):
        def do_POST(self):
            messages.put(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Ear)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    messages.url = f"http://127.0.0.1:{server.server_port}/alerts"
    yield messages
    server.shutdown()
    server.server_close()


@pytest.fixture
def alertmanager(tmp_path, heard):
    """Its API. Groups wait a second, not ten."""
    text = SHIPPED.read_text().replace("http://127.0.0.1:9095/alerts", heard.url)
    text = text.replace("group_wait: 10s", "group_wait: 1s").replace("group_wait: 5s", "group_wait: 1s")
    (tmp_path / "alertmanager.yml").write_text(text)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    process = subprocess.Popen(
        [PROGRAM, f"--config.file={tmp_path / 'alertmanager.yml'}", f"--storage.path={tmp_path / 'data'}",
         "--cluster.listen-address=", f"--web.listen-address=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_S) as client:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                if client.get("/-/ready").is_success:
                    break
            except httpx.TransportError:
                pass
            assert time.monotonic() < deadline
            threading.Event().wait(0.05)
        yield client
    process.terminate()
    process.wait(PATIENCE_S)


def fire(alertmanager, *alerts):
    posted = [{"labels": {"alertname": name, **JOB, **labels}} for name, labels in alerts]
    assert alertmanager.post("/api/v2/alerts", json=posted).is_success


def names(message):
    return sorted(alert["labels"]["alertname"] for alert in message["alerts"])


def test_what_trips_together_in_a_run_is_told_together_and_runs_apart(alertmanager, heard):
    fire(
        alertmanager,
        ("RewardFlattery", {"run": "a", "severity": "warn", "wire": "flattery"}),
        ("RewardLengthHigh", {"run": "a", "severity": "warn", "wire": "length_high"}),
        ("RewardHacking", {"run": "b", "severity": "page", "wire": "vote"}),
    )
    messages = [heard.get(timeout=PATIENCE_S) for _ in range(2)]
    assert sorted(map(names, messages)) == [["RewardFlattery", "RewardLengthHigh"], ["RewardHacking"]]


def test_what_a_replica_found_by_itself_is_no_news_where_all_of_them_show_it(alertmanager, heard):
    fire(
        alertmanager,
        ("RewardJudge", {"run": "a", "severity": "page", "wire": "judge"}),
        ("RewardTripwirePaged", {"run": "a", "severity": "page", "wire": "judge"}),
        ("RewardTripwirePaged", {"run": "a", "severity": "page", "wire": "vote"}),
    )
    assert names(heard.get(timeout=PATIENCE_S)) == ["RewardJudge", "RewardTripwirePaged"]
    silenced = [a for a in alertmanager.get("/api/v2/alerts").json() if a["status"]["inhibitedBy"]]
    assert [(a["labels"]["alertname"], a["labels"]["wire"]) for a in silenced] == [("RewardTripwirePaged", "judge")]


def test_a_server_that_is_down_is_not_slow_as_well_but_a_run_may_still_be_hacked(alertmanager, heard):
    fire(
        alertmanager,
        ("RewardServiceDown", {"severity": "page", "instance": "a"}),
        ("RewardSlow", {"severity": "warn", "instance": "a"}),
        ("RewardFlattery", {"run": "r", "severity": "warn", "wire": "flattery"}),
    )
    messages = [heard.get(timeout=PATIENCE_S) for _ in range(2)]
    assert sorted(map(names, messages)) == [["RewardFlattery"], ["RewardServiceDown"]]

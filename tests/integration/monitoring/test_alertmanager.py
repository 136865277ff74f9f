"""Routing of alerts to receivers, by a real Alertmanager with the shipped routes."""

from __future__ import annotations

import queue
import re
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path

import httpx
import pytest

from benchmarks.webhook_receiver import receive_webhooks
from tests.support.service_server import TIMEOUT_S

SHIPPED = Path(__file__).resolve().parents[3] / "monitoring/alertmanager/alertmanager.yml"
PROGRAM = shutil.which("prometheus-alertmanager") or shutil.which("alertmanager")
JOB = {"job": "rewardserve"}

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="Alertmanager is not installed")


class Received(queue.SimpleQueue):
    """Messages of Alertmanager to `url`: groups of alerts, in their order of arrival."""

    url = ""


@pytest.fixture
def received():
    messages = Received()
    with receive_webhooks(lambda request: messages.put(request.message)) as messages.url:
        yield messages


@pytest.fixture
def alertmanager(tmp_path, received):
    """Its API. Groups wait a second, those of warnings of a run four; updates come after a second."""
    text = SHIPPED.read_text().replace("http://127.0.0.1:9095/alerts", received.url)
    for shipped, here in (("10s", "1s"), ("30s", "1s"), ("2m", "4s")):
        text = text.replace(f"group_wait: {shipped}", f"group_wait: {here}")
    text = re.sub(r"group_interval: \w+", "group_interval: 1s", text)
    (tmp_path / "alertmanager.yml").write_text(text)
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    process = subprocess.Popen(
        [PROGRAM, f"--config.file={tmp_path / 'alertmanager.yml'}", f"--storage.path={tmp_path / 'data'}",
         "--cluster.listen-address=", f"--web.listen-address=127.0.0.1:{port}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=TIMEOUT_S) as client:
        deadline = time.monotonic() + TIMEOUT_S
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
    process.wait(TIMEOUT_S)


def fire(alertmanager, *alerts):
    posted = [{"labels": {"alertname": name, **JOB, **labels}} for name, labels in alerts]
    assert alertmanager.post("/api/v2/alerts", json=posted).is_success


def names(message):
    return sorted(alert["labels"]["alertname"] for alert in message["alerts"])


POLICY = {"run": "a", "cause": "policy"}


def test_one_exploit_in_one_run_is_one_notification_and_updates_of_it(alertmanager, received):
    """As it comes: a replica's finding, warnings of the sums, then the page of all together."""
    steps = [
        [("RewardTripwireWarned", {**POLICY, "severity": "warn"})],
        [("RewardFlattery", {**POLICY, "severity": "warn", "wire": "flattery"}),
         ("RewardLengthHigh", {**POLICY, "severity": "warn", "wire": "length_high"})],
        [("RewardTripwirePaged", {**POLICY, "severity": "page"})],
        [("RewardHacking", {**POLICY, "severity": "page", "wire": "vote"})],
    ]  # fmt: skip
    for alerts in steps:
        fire(alertmanager, *alerts)
    messages = [received.get(timeout=TIMEOUT_S)]
    while True:
        try:
            messages.append(received.get(timeout=6))  # the warnings would have been told by then
        except queue.Empty:
            break
    assert len({message["groupKey"] for message in messages}) == 1
    assert "RewardHacking" in {name for message in messages for name in names(message)}
    assert not {"RewardFlattery", "RewardLengthHigh"} & {name for message in messages for name in names(message)}


def test_runs_and_causes_are_separate_notifications(alertmanager, received):
    fire(
        alertmanager,
        ("RewardHacking", {**POLICY, "severity": "page", "wire": "vote"}),
        ("RewardHacking", {**POLICY, "run": "b", "severity": "page", "wire": "vote"}),
        ("RewardCanary", {"run": "canaries", "cause": "model", "severity": "page", "wire": "canary"}),
    )
    messages = [received.get(timeout=TIMEOUT_S) for _ in range(3)]
    told = sorted(tuple(m["groupLabels"][each] for each in ("run", "cause")) for m in messages)
    assert told == [("a", "policy"), ("b", "policy"), ("canaries", "model")]
    assert [len(message["alerts"]) for message in messages] == [1, 1, 1]


def test_a_warning_alone_is_sent_and_all_of_one_cause_together(alertmanager, received):
    fire(
        alertmanager,
        ("RewardFlattery", {**POLICY, "severity": "warn", "wire": "flattery"}),
        ("RewardLengthHigh", {**POLICY, "severity": "warn", "wire": "length_high"}),
        ("RewardIdReuse", {"run": "a", "cause": "client", "severity": "warn", "wire": "id_reuse"}),
    )
    messages = [received.get(timeout=TIMEOUT_S) for _ in range(2)]
    assert sorted(map(names, messages)) == [["RewardFlattery", "RewardLengthHigh"], ["RewardIdReuse"]]


def test_a_warning_of_all_replicas_does_not_hide_the_page_of_one(alertmanager, received):
    fire(
        alertmanager,
        ("RewardFlattery", {**POLICY, "severity": "warn", "wire": "flattery"}),
        ("RewardTripwirePaged", {**POLICY, "severity": "page"}),
    )
    assert names(received.get(timeout=TIMEOUT_S)) == ["RewardTripwirePaged"]
    silenced = [
        a["labels"]["alertname"] for a in alertmanager.get("/api/v2/alerts").json() if a["status"]["inhibitedBy"]
    ]
    assert silenced == ["RewardFlattery"]


def test_the_alert_of_one_replica_is_inhibited_where_all_of_them_show_it(alertmanager, received):
    fire(
        alertmanager,
        ("RewardJudgeInjection", {**POLICY, "severity": "page", "wire": "judge_injection"}),
        ("RewardTripwirePaged", {**POLICY, "severity": "page"}),
    )
    assert names(received.get(timeout=TIMEOUT_S)) == ["RewardJudgeInjection"]
    silenced = [
        a["labels"]["alertname"] for a in alertmanager.get("/api/v2/alerts").json() if a["status"]["inhibitedBy"]
    ]
    assert silenced == ["RewardTripwirePaged"]


def test_a_page_about_the_server_does_not_wait_for_the_group_of_another(alertmanager, received):
    fire(alertmanager, ("RewardServerErrors", {"severity": "page", "instance": "a"}),
         ("RewardScorerHanging", {"severity": "page", "instance": "a"}))  # fmt: skip
    messages = [received.get(timeout=TIMEOUT_S) for _ in range(2)]
    assert sorted(map(names, messages)) == [["RewardScorerHanging"], ["RewardServerErrors"]]


def test_a_server_that_is_down_is_not_slow_as_well_but_a_run_may_still_be_hacked(alertmanager, received):
    fire(
        alertmanager,
        ("RewardServiceDown", {"severity": "page", "instance": "a"}),
        ("RewardSlow", {"severity": "warn", "instance": "a"}),
        ("RewardFlattery", {**POLICY, "severity": "warn", "wire": "flattery"}),
    )
    messages = [received.get(timeout=TIMEOUT_S) for _ in range(2)]
    assert sorted(map(names, messages)) == [["RewardFlattery"], ["RewardServiceDown"]]

"""Runs, alerts and blocks over a restart, as trainer, operator and the receiver of alerts see it: real processes and signals."""

from __future__ import annotations

import random
import signal
import threading
import time
from contextlib import contextmanager

import pytest

from benchmarks.webhook_receiver import receive_webhooks
from rewardserve.service.tripwires.wires import ATTRIBUTED
from tests.integration.test_server_tripwires import WATCH_ALL, Receiver, begging, honest, train
from tests.support.service_server import Server, wait_until


@pytest.fixture
def receiver():
    receiver = Receiver()
    with receive_webhooks(receiver.put) as receiver.url:
        yield receiver


@pytest.fixture
def flags(tmp_path, receiver):
    (tmp_path / "plan.toml").write_text('block = ["judge_injection"]')
    return [*WATCH_ALL, f"--tripwires.config-file={tmp_path / 'plan.toml'}", f"--tripwires.state-dir={tmp_path / 'state'}",
            f"--webhook-url={receiver.url}"]  # fmt: skip


def stop(server, number=signal.SIGTERM):
    server.signal(number)
    assert server.ended() == (0 if number == signal.SIGTERM else -number)


def run_of(server, run="ppo-7"):
    """Its details without the summary, which has the latest report of attribution: texts do not outlive a process."""
    details = server.client.get(f"/tripwires/{run}/details").json()
    return {name: value for name, value in details.items() if name != "summary"}


def counted(details):
    """The statistics but those of reports of attribution, which end at any time: a killed server may not have saved the last."""
    return {wire: value for wire, value in details["statistics"].items() if wire not in ATTRIBUTED}


def is_blocked(server, run="ppo-7"):
    sample = {"prompt": "why?", "response": "because of the sun"}
    result = server.client.post("/score", json={"run": run, "samples": [sample]}).json()["results"][0]
    return bool(result["error"]) and result["error"]["code"] == "run_blocked"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_blocked_run_stays_blocked_and_its_page_is_sent_once(tmp_path, flags, receiver, number):
    rng = random.Random(7)
    with Server(*flags) as server:
        train(server, 20, lambda: honest(rng))
        train(server, 20, lambda: begging(rng), first=20)
        assert is_blocked(server)
        sent = receiver.next()[0]
        assert (sent["run"], sent["wire"]) == ("ppo-7", "judge_injection")
        before = run_of(server)
        stop(server, number)
    texts = "".join(path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file())
    assert "deserves" not in texts
    assert "question 3" not in texts
    with Server(*flags) as server:
        after = run_of(server)
        assert [(t["wire"], t["since_step"]) for t in after["tripped"]] == [
            (t["wire"], t["since_step"]) for t in before["tripped"]
        ]
        assert counted(after) == counted(before)
        assert after["samples"] == before["samples"]
        assert is_blocked(server)
        assert not is_blocked(server, "ppo-8")
        assert server.metric("rewardserve_tripwire_tripped", wire="judge_injection", run="ppo-7") == 1
        assert server.metric("rewardserve_tripwire_trips_total", wire="judge_injection", run="ppo-7") == 1
        assert "state_restored" in server.log
        assert server.client.post("/tripwires/ppo-7/judge_injection/ack").status_code == 200
        assert not is_blocked(server)
        time.sleep(1.0)  # an acknowledgement is written within .2 seconds
        stop(server, signal.SIGKILL)
    with Server(*flags) as server:
        assert not is_blocked(server)
        stop(server)
    later = [receiver.next()[0] for _ in range(receiver.qsize())]
    # A report that was begun before may page by another wire; that is news.
    assert [message for message in later if message["wire"] == "judge_injection"] == [], "it was sent before"


def test_a_server_that_restarts_raises_the_alerts_of_one_that_does_not(tmp_path, flags):
    def steps(server, first, last, rng):
        for step in range(first, last):
            share = (step - 24) / 60
            train(server, 1, lambda share=share: begging(rng) if rng.random() < share else honest(rng), first=step)

    steady, cut = ([*flags[:-2], f"--tripwires.state-dir={tmp_path / name}"] for name in ("steady", "cut"))
    steady[3] = cut[3] = "--tripwires.window=64"  # no blocks
    for each in (steady, cut):
        each.append("--tripwires.attribution=0")  # its texts do not outlive a process
    with Server(*steady) as server:
        steps(server, 0, 60, random.Random(5))
        expected = run_of(server)
    rng = random.Random(5)
    for first, last in ((0, 7), (7, 8), (8, 31), (31, 60)):
        with Server(*cut) as server:
            steps(server, first, last, rng)
            got = run_of(server)
            stop(server)
    assert got["tripped"], "there is something to compare"
    for run in (expected, got):
        for tripped in run["tripped"]:
            del tripped["since"]
    for each in (*expected["tripped"], expected):
        name = "statistic" if "statistic" in each else "statistics"
        # The chunks of a request are counted as they are scored, so the last digit of a sum may differ.
        each[name] = pytest.approx(each[name])
    assert got == expected


def test_under_another_pipeline_a_run_is_measured_again_and_stays_blocked(flags):
    rng = random.Random(7)
    with Server(*flags) as server:
        train(server, 40, lambda: begging(rng))
        assert is_blocked(server)
        stop(server)
    with Server(*flags, "--cap-high=5") as server:
        assert is_blocked(server)
        assert run_of(server)["samples"] == 0
        assert "state_refused" in server.log
        assert "another model" in server.log
        assert server.client.post("/tripwires/ppo-7/judge_injection/ack").status_code == 200
        train(server, 1, lambda: honest(rng), first=40)
        assert run_of(server)["samples"] == 32
        stop(server)


def test_a_damaged_state_is_set_aside_and_the_server_serves(tmp_path, flags):
    folder = tmp_path / "state" / "0"
    folder.mkdir(parents=True)
    (folder / "runs.state").write_bytes(b"rewardserve runs 1\n" + b"\0" * 99)
    with Server(*flags) as server:
        assert "state_refused" in server.log
        train(server, 1, lambda: "some honest answer to it")
        stop(server)
    assert (folder / "runs.state.broken").exists()


@contextmanager
def closed_receiver():
    """The address of a receiver that is away."""
    with receive_webhooks(lambda _: None) as url:
        pass
    yield url


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_page_that_was_not_delivered_is_delivered_after_the_restart(flags, receiver, number):
    rng = random.Random(7)
    with closed_receiver() as nowhere, Server(*flags[:-1], f"--webhook-url={nowhere}") as server:
        train(server, 40, lambda: begging(rng))
        wait_until(lambda: server.client.get("/livez").is_success and "alert_delayed" in server.log)
        stop(server, number)
    with Server(*flags) as server:
        assert is_blocked(server)
        first = receiver.next()[0]
        stop(server)
    with Server(*flags) as server:
        stop(server)
    rest = [receiver.next()[0] for _ in range(receiver.qsize())]
    assert len({each["wire"] for each in (first, *rest)}) == 1 + len(rest), "each alert once"


def test_replicas_that_share_a_state_folder_have_one_each(tmp_path, flags):
    with Server(*flags) as one, Server(*flags) as two:
        for server, name in ((one, "a"), (two, "b")):
            train(server, 2, lambda: "some honest answer to it", run=name)
        for server in (one, two):
            stop(server)
    assert sorted(path.name for path in (tmp_path / "state").iterdir()) == ["0", "1", "console.secret"]
    with Server(*flags) as one, Server(*flags) as two:
        assert {name for server in (one, two) for name in server.client.get("/tripwires").json()["runs"]} == {"a", "b"}


def test_a_run_that_has_ended_raises_nothing_and_leaves_the_metrics_also_after_a_restart(flags):
    rng = random.Random(7)
    ends = [*flags, "--tripwires.run-ends-s=1"]
    with Server(*ends) as server:
        train(server, 40, lambda: begging(rng))
        wait_until(lambda: not server.metric("rewardserve_run_sum_total", run="ppo-7"), 8.0)
        assert run_of(server)["ended"]
        assert server.metric("rewardserve_tripwire_tripped", run="ppo-7") == 0
        stop(server)
    threading.Event().wait(1.0)
    with Server(*ends) as server:
        assert run_of(server)["ended"]
        assert "ppo-7" not in server.client.get("/metrics").text
        assert is_blocked(server)

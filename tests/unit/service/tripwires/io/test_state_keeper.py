"""The state of runs outlives the server; one that does not fit is refused, run by run if it can be, and takes nothing down."""

from __future__ import annotations

import asyncio
import json
import os
import threading
from collections import deque
from dataclasses import replace

import httpx
import msgspec
import pytest

from rewardserve.service.tripwires.alert import CANARY, Alert
from rewardserve.service.tripwires.baseline import Baseline, BaselineSource, BaselineStat, LearnedBaselines
from rewardserve.service.tripwires.io import run_records, state_keeper
from rewardserve.service.tripwires.io.alert_sender import AlertSender
from rewardserve.service.tripwires.io.state_keeper import FILE_NAME, SAVE_EVERY_S, StateKeeper
from rewardserve.service.tripwires.io.webhook import Webhook
from rewardserve.service.tripwires.run_monitor import RunMonitor
from rewardserve.service.tripwires.run_state import MonitorLimits, Run
from rewardserve.service.tripwires.run_table import CANARIES
from tests.support.run_states import actions, state
from tests.support.service_fakes import PATIENCE_S, TripwireLog

SOURCE = BaselineSource(components=("one", "two"), model="kind", digest="m")
LIMITS = MonitorLimits(window=16, warm_up=2, blocks=frozenset({"judge_injection"}))
DAY_S = 86_400.0


class Clock:
    """A clock that stands still until a test moves it; waits end at once."""

    def __init__(self, now=1_000.0, unix_s=1_800_000_000.0):
        self.at, self.unix_s = now, unix_s

    def now(self):
        return self.at

    def unix_time(self):
        return self.unix_s

    async def wait(self, event, until):
        await asyncio.sleep(0.001)


class Receiver(httpx.AsyncBaseTransport):
    def __init__(self):
        self.ids = []

    async def handle_async_request(self, request):
        self.ids.append(request.headers["webhook-id"])
        return httpx.Response(204)


class Server:
    """The parts of one process that keep state."""

    def __init__(self, folder, source=SOURCE, settings="s", limits=LIMITS, clock=None, receiver=None):
        self.events, self.clock, self.source = TripwireLog(), clock or Clock(), source
        self.learned = LearnedBaselines()
        self.monitor = RunMonitor(replace(source, store=self.learned), limits)
        self.webhook = None
        if receiver is not None:
            self.webhook = Webhook("http://receiver/", (), self.clock, self.events, transport=receiver, folder=folder)
        self.sender = AlertSender(self.monitor, self.events, self.webhook, holds=True)
        self.keeper = StateKeeper(folder, self.monitor, self.sender, self.learned, settings, self.clock, self.events)

    async def __aenter__(self):
        if self.webhook is not None:
            self.webhook.start()
        self.keeper.start(self.monitor.baseline_source)
        return self

    async def __aexit__(self, *_):
        await self.keeper.stop()
        if self.webhook is not None:
            await self.webhook.stop()

    def alert(self, wire="judge_injection", severity="page", run="a"):
        self.monitor.observe(run, 1, [], self.clock.now())
        alert = Alert(wire, severity, 2.0, 1.0, 1, ("e",))
        assert self.monitor.report(run, alert, self.clock.now())
        self.sender.send(run, alert, {"model": "m"})


@pytest.fixture(autouse=True)
def _no_closing_pause(monkeypatch):
    monkeypatch.setattr("rewardserve.service.tripwires.io.webhook._CLOSING_S", PATIENCE_S)


async def test_a_server_that_has_stopped_goes_on_where_it_was(tmp_path):
    async with Server(tmp_path) as one:
        for action in actions(3, 300):
            action(one.monitor)
        expected, incidents = state(one.monitor), one.sender.incidents_of("a")
    async with Server(tmp_path) as two:
        assert state(two.monitor) == expected
        assert two.sender.incidents_of("a") == incidents
        assert two.learned.items() == one.learned.items()
        assert (two.events.refused, two.events.restored) == ([], [(len(expected[0]), 0.0)])


async def test_a_server_that_is_killed_has_lost_the_samples_since_the_last_save_and_no_alert(tmp_path):
    one = Server(tmp_path)
    await one.__aenter__()
    one.monitor.observe("a", 7, [], 1_000.0)
    await asyncio.sleep(0.02)
    assert not (tmp_path / FILE_NAME).exists()
    one.clock.at += SAVE_EVERY_S
    await written(tmp_path)
    one.monitor.observe("a", 8, [], 1_010.0)
    async with Server(tmp_path) as two:
        assert two.monitor.runs["a"].step == 7
    (tmp_path / FILE_NAME).unlink()
    one.alert()
    await written(tmp_path)
    async with Server(tmp_path) as three:
        assert (three.monitor.blocked_by("a"), three.monitor.blocked_by("b")) == ("judge_injection", None)
    (tmp_path / FILE_NAME).unlink()
    one.monitor.acknowledge("a", "judge_injection")
    await written(tmp_path)
    async with Server(tmp_path) as four:
        assert four.monitor.blocked_by("a") is None


async def until(condition):
    for _ in range(int(PATIENCE_S * 200)):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came to be")


async def written(folder):
    await until((folder / FILE_NAME).exists)


# -- notifications ----------------------------------------------------------------------------------------------------


async def test_a_page_is_sent_once_over_any_number_of_restarts(tmp_path):
    receiver = Receiver()
    async with Server(tmp_path, receiver=receiver) as one:
        one.alert()
    for _ in range(3):
        async with Server(tmp_path, receiver=receiver) as again:
            assert not again.monitor.report("a", Alert("judge_injection", "page", 3.0, 1.0, 2, ()), 0.0)
            again.monitor.report("a", later := Alert("vote", "page", 4.0, 3.0, 2, ()), 0.0)
            again.sender.send("a", later, {})
            again.monitor.acknowledge("a", "vote")
    assert len(receiver.ids) == 1, "the incident of the first page is open"


async def test_a_page_leaves_only_after_a_state_with_its_alert(tmp_path, monkeypatch):
    begun, let_go, receiver = threading.Event(), threading.Event(), Receiver()

    def write(path, data, real=state_keeper.write_atomically):
        begun.set()
        assert let_go.wait(PATIENCE_S)
        real(path, data)

    monkeypatch.setattr(state_keeper, "write_atomically", write)
    async with Server(tmp_path, receiver=receiver) as one:
        one.alert()
        assert await asyncio.to_thread(begun.wait, PATIENCE_S)
        await asyncio.sleep(0.02)
        assert receiver.ids == []
        let_go.set()
        await until(lambda: receiver.ids)


async def test_a_page_that_a_killed_server_had_not_sent_is_sent_by_the_next_one_and_no_other(tmp_path):
    receiver = Receiver()
    one = Server(tmp_path, receiver=receiver)
    one.keeper.start(one.monitor.baseline_source)  # and its webhook is never started
    one.alert()
    (waiting,) = one.sender.held("a")
    await written(tmp_path)
    async with Server(tmp_path, receiver=receiver):
        pass
    assert receiver.ids == [waiting.id]
    async with Server(tmp_path, receiver=receiver):
        pass
    assert receiver.ids == [waiting.id]


async def test_a_page_that_a_killed_server_had_sent_is_not_sent_again(tmp_path):
    """Its state still has the page as one that waits; the ids of delivered messages do not."""
    receiver = Receiver()
    one = Server(tmp_path, receiver=receiver)
    await one.__aenter__()
    one.alert()
    queue = tmp_path / "webhook.json"
    await until(lambda: queue.exists() and json.loads(queue.read_text())["ended"])
    async with Server(tmp_path, receiver=receiver):
        pass
    assert len(receiver.ids) == 1


async def test_a_disk_that_is_full_holds_no_page_back(tmp_path, monkeypatch):
    def write(path, data):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(state_keeper, "write_atomically", write)
    receiver = Receiver()
    async with Server(tmp_path, receiver=receiver) as one:
        one.alert()
        await until(lambda: receiver.ids)
    assert set(one.events.failures) == {f"{FILE_NAME} cannot be written: No space left on device"}


async def test_a_disk_that_hangs_holds_no_page_back(tmp_path, monkeypatch):
    let_go, receiver = threading.Event(), Receiver()
    monkeypatch.setattr(state_keeper, "write_atomically", lambda *_: let_go.wait(PATIENCE_S))
    monkeypatch.setattr(state_keeper, "_MAX_WRITE_S", 0.01)
    async with Server(tmp_path, receiver=receiver) as one:
        one.alert()
        await until(lambda: receiver.ids)
    let_go.set()


async def test_an_acknowledgement_while_the_disk_hangs_is_written_once_it_no_longer_does(tmp_path, monkeypatch):
    let_go, written = threading.Event(), []

    def write(_, data):
        let_go.wait(PATIENCE_S)
        written.append(data)

    monkeypatch.setattr(state_keeper, "write_atomically", write)
    monkeypatch.setattr(state_keeper, "_MAX_WRITE_S", 0.01)
    async with Server(tmp_path) as one:
        one.alert()
        await until(lambda: one.keeper._writing is not None)
        assert one.monitor.acknowledge("a", "judge_injection")
        await one.keeper.save()
        assert one.keeper._saved_alerts != one.monitor.alerts_revision
        let_go.set()
        await until(lambda: one.keeper._saved_alerts == one.monitor.alerts_revision and len(written) > 1)


# -- time -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rebooted", [False, True])
@pytest.mark.parametrize("away_s", [60.0, 3 * DAY_S, -5_000.0])
async def test_times_go_on_by_the_wall_clock_and_no_run_is_forgotten_for_it(tmp_path, away_s, rebooted):
    clock = Clock()
    async with Server(tmp_path, clock=clock) as one:
        one.alert()
        clock.at += 100.0
        clock.unix_s += 100.0
    later = Clock(5.0 if rebooted else clock.at + away_s, clock.unix_s + away_s)
    async with Server(tmp_path, clock=later) as two:
        run = two.monitor.runs["a"]
        assert later.at - run.alerts["judge_injection"].since == pytest.approx(100.0 + max(0.0, away_s))
        assert later.at - run.seen_at == pytest.approx(min(100.0 + max(0.0, away_s), DAY_S - 3_600.0))
        two.monitor.observe("b", 1, [], later.at + 3_000.0)
        assert "a" in two.monitor.runs, "its trainer may have waited for the server"


async def test_a_run_that_has_ended_is_still_ended_after_a_restart(tmp_path):
    async with Server(tmp_path) as one:
        one.alert()
        one.clock.at += LIMITS.ended_s
        one.clock.unix_s += LIMITS.ended_s
    later = Clock(one.clock.at + 1.0, one.clock.unix_s + 1.0)
    async with Server(tmp_path, clock=later) as two:
        assert two.monitor.has_ended("a", later.at)
        assert two.monitor.blocked_by("a") == "judge_injection"


# -- states that do not fit -------------------------------------------------------------------------------------------


def baseline_of(n):
    return Baseline({"length": BaselineStat(float(n), 1.0, 512.0)}, 3.0)


async def saved(folder):
    async with Server(folder) as one:
        for action in actions(3, 300):
            action(one.monitor)
        for label, run in one.monitor.runs.items():
            if label != CANARIES and "judge_injection" not in run.alerts:
                one.monitor.report(label, Alert("judge_injection", "page", 2.0, 1.0, 1, ()), one.clock.now())
            one.monitor.add_attributed(label, {"judge_contradicts": 0.1}, one.clock.now(), run.baseline_source)
    return one.monitor


async def test_under_another_model_runs_begin_afresh_and_stay_blocked(tmp_path):
    before = await saved(tmp_path)
    async with Server(tmp_path, source=replace(SOURCE, digest="another")) as two:
        runs = two.monitor.runs
        assert {label for label, _ in two.events.refused} == set(runs) == set(before.runs)
        assert all("another model" in reason for _, reason in two.events.refused)
        for label, run in runs.items():
            assert (run.all_sums["samples"], run.n_windows, run.baseline, run.texts) == (0.0, 0, Baseline(), {})
            assert run.alerts == before.runs[label].alerts
            assert run.trips == before.runs[label].trips
        assert two.monitor.blocked_by("a") is not None
    async with Server(tmp_path) as three:  # its own model again: baselines of names are known, sums are not
        assert three.monitor.runs["a"].all_sums["samples"] == 0.0


async def test_with_another_judge_or_window_the_baseline_stays_and_statistics_begin_afresh(tmp_path):
    before = (await saved(tmp_path)).runs["a"]
    async with Server(tmp_path, settings="another") as two:
        run = two.monitor.runs["a"]
        assert (run.baseline, run.has_baseline, run.alerts) == (before.baseline, True, before.alerts)
        assert (run.smooth["samples"], run.window["samples"], run.statistics) == (0.0, 0.0, {})
        assert (run.window_samples, run.window_audits, run.honeypots) == ([], [], deque())
        assert (run.audit_drift.start, run.attributed) == (None, {})
        assert run.all_sums.sums == pytest.approx(before.all_sums.sums), "no counter falls"
        assert {label for label, _ in two.events.refused} == set(two.monitor.runs)
        assert all("statistics begin afresh" in reason for _, reason in two.events.refused)


async def test_alerts_of_a_wire_that_is_off_now_are_dropped(tmp_path):
    async with Server(tmp_path) as one:
        one.alert("flattery", "warn")
        one.alert("judge_injection")
    two = Server(tmp_path)
    two.monitor.wires = tuple(wire for wire in two.monitor.wires if wire.name != "flattery")
    async with two:
        assert set(two.monitor.runs["a"].alerts) == {"judge_injection"}


def another_version(data):
    return data.replace(b"runs 1\n", b"runs 9\n", 1)


@pytest.mark.parametrize("damage", [lambda data: b"", lambda data: data[:-1], lambda data: data + b"x", another_version,
                                    lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:], lambda data: data[::-1],
                                    lambda data: data[:-9] + bytes([data[-9] ^ 64]) + data[-8:]])  # fmt: skip
async def test_a_damaged_file_is_set_aside_and_all_runs_begin_afresh(tmp_path, damage):
    await saved(tmp_path)
    path = tmp_path / FILE_NAME
    data = damage(path.read_bytes())
    path.write_bytes(data)
    async with Server(tmp_path) as two:
        assert two.monitor.runs == {}
        ((label, reason),) = two.events.refused
        assert label == ""
        assert "set aside" in reason
        assert (tmp_path / (FILE_NAME + ".broken")).read_bytes() == data
        two.alert()
    async with Server(tmp_path) as three:
        assert three.monitor.blocked_by("a")


async def test_a_file_with_the_right_checksum_and_wrong_content_takes_nothing_down(tmp_path):
    for runs, baselines in (([b"x", b""], b"x"), ([msgspec.msgpack.encode({"label": 1})], b"\x90")):
        payload = msgspec.msgpack.encode(
            {"unix_s": 1.0, "monotonic_s": 1.0, "settings": "s", "runs": runs, "baselines": baselines}
        )
        (tmp_path / FILE_NAME).write_bytes(state_keeper._MAGIC + state_keeper._checksum(payload) + payload)
        async with Server(tmp_path) as two:
            assert two.monitor.runs == {}
            assert two.events.refused


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
async def test_something_else_than_a_file_takes_nothing_down(tmp_path, make):
    make(tmp_path / FILE_NAME)
    async with Server(tmp_path) as two:
        assert two.events.refused


async def test_a_run_that_another_version_wrote_with_other_types_keeps_its_alerts(tmp_path, monkeypatch):
    async with Server(tmp_path) as one:
        one.alert()
        one.monitor.runs["a"].kl = "text"
    async with Server(tmp_path) as two:
        assert two.monitor.blocked_by("a")
        assert two.events.refused == [
            ("a", "its numbers cannot be read (ValidationError): it begins afresh, its alerts stay")
        ]


async def test_a_field_that_an_older_version_did_not_write_has_its_default(monkeypatch):
    types = {name: hint for name, hint in run_records._TYPES.items() if name != "honeypots"}
    run = Run.new("", "a", None, SOURCE)
    run.honeypots.append(True)
    with monkeypatch.context() as older:
        older.setattr(run_records, "_TYPES", types)
        data = run_records.encode_run("a", run, is_archived=False, incidents={}, waiting=())
    restored = run_records.decode_run(data, SOURCE, 0.0)
    assert (restored.misfit, restored.run.honeypots, restored.run.honeypots.maxlen) == ("", deque(), 200)


async def test_a_run_that_cannot_be_written_is_reported_and_the_others_are_kept(tmp_path):
    async with Server(tmp_path) as one:
        one.alert(run="a")
        one.alert(run="b")
        one.monitor.runs["a"].statistics["x"] = object()
    assert "TypeError" in one.events.failures[0] or "NotImplementedError" in one.events.failures[0]
    async with Server(tmp_path) as two:
        assert set(two.monitor.runs) == {"b"}


async def test_a_state_that_is_too_large_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr(state_keeper, "MAX_BYTES", 100)
    async with Server(tmp_path) as one:
        one.alert()
    assert one.events.failures
    assert not (tmp_path / FILE_NAME).exists()


async def test_of_learned_baselines_the_latest_are_kept(tmp_path, monkeypatch):
    monkeypatch.setattr("rewardserve.service.tripwires.baseline.MAX_LEARNED", 3)
    async with Server(tmp_path) as one:
        for i in range(5):
            one.learned.save("m", f"run {i}", baseline_of(i))
        one.alert(CANARY)
    async with Server(tmp_path) as two:
        assert two.learned.items() == [("m", f"run {i}", baseline_of(i)) for i in (2, 3, 4)]


async def test_only_runs_that_have_changed_are_converted_again(tmp_path, monkeypatch):
    converted = []

    def encode(label, *args, real=run_records.encode_run, **kwargs):
        converted.append(label)
        return real(label, *args, **kwargs)

    monkeypatch.setattr(state_keeper, "encode_run", encode)
    async with Server(tmp_path) as one:
        for name in ("a", "b"):
            one.monitor.observe(name, 1, [], 0.0)
        await one.keeper.save()
        one.monitor.observe("b", 2, [], 0.0)
        await one.keeper.save()
    assert converted == ["a", "b", "b"]

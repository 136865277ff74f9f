"""An alert arrives, signed, however long its receiver is away, or the log says that it did not."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import random
import threading
from itertools import count, repeat

import httpx
import pytest
import standardwebhooks

from rewardserve.service.tripwires.io import webhook as module
from rewardserve.service.tripwires.io.webhook import FILE_NAME, QueuedAlert, Webhook
from tests.support.service_fakes import PATIENCE_S, TripwireLog

KEY = b"0123456789abcdef0123456789abcdef"
SECRET = "whsec_" + base64.b64encode(KEY).decode()
NOW = 1_800_000_000.0


class Receiver(httpx.AsyncBaseTransport):
    """Answers with these statuses, one after the other, and with 200 from then on. An exception is raised."""

    def __init__(self, *answers, after=None):
        self.answers, self.requests, self.after = list(answers), [], after

    async def handle_async_request(self, request):
        self.requests.append(request)
        answer = self.answers.pop(0) if self.answers else 200
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer, headers={"retry-after": self.after} if self.after else None)

    @property
    def heard(self):
        return [json.loads(request.content)["wire"] for request in self.requests]


class PausedClock:
    """Waits take no time; `pauses` has how long each would have been. `times` and `unix_times` are of calls in turn."""

    def __init__(self, times=None, unix_times=None):
        self.pauses, self._times, self._unix_times = [], times or repeat(0.0), unix_times or repeat(NOW)

    def now(self):
        self._now = next(self._times)
        return self._now

    def unix_time(self):
        return next(self._unix_times)

    async def wait(self, event, until):
        self.pauses.append(until - self._now)
        await asyncio.sleep(0)


class Longest(random.Random):
    """Chooses the upper end."""

    def uniform(self, a, b):
        return b


@pytest.fixture
def paused():
    return PausedClock()


async def told(receiver, *wires, secrets=(SECRET,), clock=None, rng=None, **kwargs):
    """What became of these alerts."""
    report = TripwireLog()
    webhook = Webhook(
        "http://receiver/x",
        secrets,
        clock or PausedClock(),
        report,
        transport=receiver,
        rng=rng or Longest(),
        **kwargs,
    )
    webhook.start()
    for wire in wires:
        webhook.add(webhook.message({"run": "ppo-7", "wire": wire}))
    await asyncio.wait_for(webhook.stop(), PATIENCE_S)
    return report


async def test_alerts_arrive_in_order_and_signed_as_standard_webhooks():
    receiver = Receiver()
    assert (await told(receiver, "a", "b")).lost == []
    assert receiver.heard == ["a", "b"]
    ids = set()
    for request in receiver.requests:
        name, at = request.headers["webhook-id"], request.headers["webhook-timestamp"]
        expected = hmac.new(KEY, f"{name}.{at}.".encode() + request.content, hashlib.sha256).digest()
        assert request.headers["webhook-signature"] == "v1," + base64.b64encode(expected).decode()
        assert at == str(int(NOW))
        ids.add(name)
    assert len(ids) == 2


async def test_the_library_of_the_standard_takes_what_is_sent_and_no_changed_body():
    import time

    receiver = Receiver()
    await told(receiver, "a", clock=PausedClock(unix_times=repeat(time.time())))
    (request,) = receiver.requests
    theirs = standardwebhooks.Webhook(SECRET)
    assert theirs.verify(request.content, dict(request.headers))["wire"] == "a"
    with pytest.raises(standardwebhooks.WebhookVerificationError):
        theirs.verify(request.content.replace(b'"a"', b'"b"'), dict(request.headers))


async def test_while_secrets_are_changed_both_sign():
    receiver, new = Receiver(), "whsec_" + base64.b64encode(b"n" * 32).decode()
    await told(receiver, "a", secrets=(SECRET, new))
    assert len(receiver.requests[0].headers["webhook-signature"].split(" ")) == 2


async def test_a_new_alert_ends_the_pause_of_another_one_only():
    """What waits because of one message wakes up for the next; what waits for the receiver does not."""
    for trouble, wakes in ((500, True), (httpx.ConnectError("away"), False)):
        begun = asyncio.Event()

        class Waiting(PausedClock):
            async def wait(self, event, until, begun=begun):
                begun.set()
                await event.wait()

        receiver = Receiver(trouble)
        webhook = Webhook("http://receiver/x", (), Waiting(), TripwireLog(), transport=receiver)
        webhook.start()
        webhook.add(webhook.message({"run": "r", "wire": "a"}))
        await asyncio.wait_for(begun.wait(), PATIENCE_S)
        webhook.add(webhook.message({"run": "r", "wire": "b"}))
        if wakes:
            await asyncio.wait_for(webhook._idle.wait(), PATIENCE_S)
        for _ in range(20):
            await asyncio.sleep(0)
        assert receiver.heard == (["a", "b", "a"] if wakes else ["a"])
        for task in webhook._tasks:
            task.cancel()
        await webhook._client.aclose()


async def test_without_a_secret_nothing_is_signed():
    receiver = Receiver()
    await told(receiver, "a", secrets=())
    assert "webhook-signature" not in receiver.requests[0].headers


@pytest.mark.parametrize(
    "trouble",
    [503, 429, 408, 404, 401, 302, httpx.ConnectError("no"), httpx.ReadTimeout("slow"), RuntimeError("no thread")],
)
async def test_a_failed_delivery_is_retried_under_the_same_id(paused, trouble):
    receiver = Receiver(trouble, trouble)
    report = await told(receiver, "a", clock=paused)
    assert (report.lost, receiver.heard, len(report.delayed)) == ([], ["a", "a", "a"], 1)
    assert len({request.headers["webhook-id"] for request in receiver.requests}) == 1


class Endless(httpx.AsyncByteStream):
    """A body that never ends, as fast as it is read. How much of it was read is counted."""

    n_bytes = 0

    async def __aiter__(self):
        while self.n_bytes < 2**24:  # a server that reads on is told apart in a moment
            self.n_bytes += 2**16
            yield b"a" * 2**16


async def test_an_answer_without_end_is_not_read_and_holds_up_no_other_alert(paused):
    body = Endless()

    class Talkative(Receiver):
        async def handle_async_request(self, request):
            self.requests.append(request)
            return httpx.Response(200, stream=body)

    receiver = Talkative()
    report = await told(receiver, "a", "b", clock=paused)
    assert (receiver.heard, report.lost, report.delayed, body.n_bytes) == (["a", "b"], [], [], 0)


async def test_a_head_that_comes_byte_by_byte_is_a_failure_after_a_while(monkeypatch):
    """Over a socket: each byte is there in the time that one step may take, the head as a whole never is."""
    monkeypatch.setattr(module, "_TIMEOUT_S", 0.3)
    n_asked, handlers = 0, []

    async def trickle(reader, writer):
        nonlocal n_asked
        n_asked += 1
        handlers.append(asyncio.current_task())
        await reader.readuntil(b"\r\n\r\n")
        with contextlib.suppress(OSError):
            if n_asked == 2:
                writer.write(b"HTTP/1.1 204 No Content\r\n\r\n")
            while n_asked == 1:
                writer.write(b"HTTP/1.1 102 Processing\r\n\r\n")
                await writer.drain()
                await asyncio.sleep(0.01)
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()

    server = await asyncio.start_server(trickle, "127.0.0.1", 0)
    report = TripwireLog()
    webhook = Webhook(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/", (), PausedClock(), report)
    webhook.start()
    webhook.add(webhook.message({"run": "ppo-7", "wire": "a"}))
    await asyncio.wait_for(webhook.stop(), PATIENCE_S)
    server.close()
    await asyncio.wait_for(asyncio.gather(*handlers), PATIENCE_S)
    assert ([why for why, _ in report.delayed], report.lost, n_asked) == (["TimeoutError"], [], 2)


async def test_pauses_grow_within_bounds_and_are_spread(paused):
    receiver = Receiver(*[httpx.ConnectError("away")] * 12)
    picked = []

    class Lowest(random.Random):
        def uniform(self, a, b):
            picked.append((a, b))
            return a

    assert (await told(receiver, "a", "b", rng=Lowest(), clock=paused)).lost == []
    assert [high for _, high in picked] == [0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60, 60]
    assert all(low == high / 2 for low, high in picked)
    assert paused.pauses == [low for low, _ in picked]
    assert receiver.heard[-2:] == ["a", "b"], "in order, after minutes of a receiver that is away"


async def test_retry_after_of_the_receiver_is_respected_within_bounds(paused):
    await told(Receiver(503, after="7"), "a", clock=paused)
    await told(Receiver(503, after="99999"), "a", clock=paused)
    await told(Receiver(503, after="Wed, 21 Oct 2026 07:28:00 GMT"), "a", clock=paused)
    assert paused.pauses == [7.0, 60.0, 0.5]


@pytest.mark.parametrize("status", [400, 410, 413, 422])
async def test_a_message_that_is_refused_for_itself_is_lost_at_once(status):
    receiver = Receiver(status)
    assert (await told(receiver, "a", "b")).lost == [("a", f"the receiver answered {status}")]
    assert receiver.heard == ["a", "b"]


async def test_one_that_the_receiver_chokes_on_holds_no_other_up(paused):
    class Choking(Receiver):
        async def handle_async_request(self, request):
            self.answers = [500] * (b'"a"' in request.content and len(self.requests) < 40)
            return await super().handle_async_request(request)

    receiver = Choking()
    assert (await told(receiver, "a", "b", "c", clock=paused)).lost == []
    assert receiver.heard[:3] == ["a", "b", "c"]


async def test_after_a_day_an_alert_is_lost():
    times = iter([0.0] * 3 + [90_000.0] * 20)
    report = await told(Receiver(*[503] * 3), "a", clock=PausedClock(times))
    assert report.lost == [("a", "the receiver answered 503")]


@pytest.mark.parametrize("jump_s", [366 * 86_400.0, -366 * 86_400.0, 90_000.0])
async def test_a_jump_of_the_wall_clock_loses_no_alert(jump_s):
    times = iter([NOW] * 2 + [NOW + jump_s] * 50)
    receiver = Receiver(*[503] * 6)
    report = await told(receiver, "a", "b", clock=PausedClock(unix_times=times))
    assert report.lost == []
    assert set(receiver.heard) == {"a", "b"}


@pytest.mark.parametrize("since", [NOW - 366 * 86_400, NOW + 366 * 86_400, -1e300, 1e300, NOW - 10])
async def test_an_alert_from_before_a_restart_is_tried_for_a_while_whatever_the_clock_was(tmp_path, since):
    kept = {"id": "msg_1", "since": since, "alert": {"run": "r", "wire": "a"}}
    (tmp_path / FILE_NAME).write_text(json.dumps({"waiting": [kept], "ended": []}))
    receiver = Receiver(*[503] * 6)
    report = await told(receiver, folder=tmp_path, clock=PausedClock(count(0.0, 60.0)))
    assert (report.lost, receiver.heard) == ([], ["a"] * 7)


async def test_an_alert_from_before_a_restart_is_lost_after_a_day_in_all(tmp_path):
    kept = {"id": "msg_1", "since": NOW - 80_000, "alert": {"run": "r", "wire": "a"}}
    (tmp_path / FILE_NAME).write_text(json.dumps({"waiting": [kept], "ended": []}))
    times = iter([0.0, 5_000.0, 5_000.0, 6_000.0, 6_000.0, 7_000.0])
    receiver = Receiver(*[503] * 9)
    report = await told(receiver, folder=tmp_path, clock=PausedClock(times))
    assert report.lost == [("a", "the receiver answered 503")]
    assert receiver.heard == ["a", "a", "a"], "80,000 and 7,000 seconds are more than a day, 6,000 are not"


async def test_too_many_are_dropped_from_the_oldest_on(monkeypatch):
    monkeypatch.setattr("rewardserve.service.tripwires.io.webhook._MAX_WAITING", 2)
    receiver = Receiver()
    report = await told(receiver, "a", "b", "c")
    assert [wire for wire, _ in report.lost] == ["a"]
    assert receiver.heard == ["b", "c"]


class Deaf(httpx.AsyncBaseTransport):
    async def handle_async_request(self, request):
        await asyncio.Event().wait()


async def test_what_is_left_at_the_end_is_said(monkeypatch):
    monkeypatch.setattr("rewardserve.service.tripwires.io.webhook._CLOSING_S", 0.01)
    assert (await told(Deaf(), "a", "b")).lost == [(w, "the server ended") for w in "ab"]


# -- over a restart ---------------------------------------------------------------------------------------------------


async def test_what_waits_is_delivered_after_a_restart_under_its_id(monkeypatch, tmp_path):
    monkeypatch.setattr("rewardserve.service.tripwires.io.webhook._CLOSING_S", 0.01)
    assert (await told(Deaf(), "a", "b", folder=tmp_path)).lost == []
    (first, second) = json.loads((tmp_path / FILE_NAME).read_text())["waiting"]
    monkeypatch.setattr("rewardserve.service.tripwires.io.webhook._CLOSING_S", PATIENCE_S)
    receiver = Receiver()
    assert (await told(receiver, "c", folder=tmp_path)).lost == []
    assert receiver.heard == ["a", "b", "c"]
    assert [request.headers["webhook-id"] for request in receiver.requests[:2]] == [first["id"], second["id"]]
    kept = json.loads((tmp_path / FILE_NAME).read_text())
    assert (kept["waiting"], kept["ended"][:2], len(kept["ended"])) == ([], [first["id"], second["id"]], 3)


async def test_a_message_of_an_earlier_process_is_sent_unless_it_has_arrived_or_waits_already(monkeypatch, tmp_path):
    monkeypatch.setattr("rewardserve.service.tripwires.io.webhook._CLOSING_S", 0.01)
    await told(Receiver(), "a", folder=tmp_path)
    await told(Deaf(), "b", folder=tmp_path)
    kept = json.loads((tmp_path / FILE_NAME).read_text())
    arrived, waits = kept["ended"][0], kept["waiting"][0]["id"]
    monkeypatch.setattr("rewardserve.service.tripwires.io.webhook._CLOSING_S", PATIENCE_S)
    receiver = Receiver()
    webhook = Webhook("http://receiver/x", (), PausedClock(), TripwireLog(), transport=receiver, folder=tmp_path)
    webhook.start()
    for name in (arrived, waits, "msg_new"):
        webhook.restore(QueuedAlert(name, NOW, 0.0, {"run": "r", "wire": name}))
    await webhook.stop()
    assert receiver.heard == ["b", "msg_new"]


async def test_the_last_write_is_the_last_one_in_the_file(monkeypatch, tmp_path):
    """A write that hangs on its thread when the server ends does not come after the last one."""
    begun, let_go = threading.Event(), threading.Event()

    def write(path, data, real=module.write_atomically):
        if b'"a"' in data and not begun.is_set():
            begun.set()
            assert let_go.wait(PATIENCE_S)
        real(path, data)

    monkeypatch.setattr(module, "write_atomically", write)
    webhook = Webhook("http://receiver/x", (), PausedClock(), TripwireLog(), transport=Receiver(), folder=tmp_path)
    webhook.start()
    webhook.add(webhook.message({"run": "r", "wire": "a"}))
    await asyncio.to_thread(begun.wait, PATIENCE_S)
    ending = asyncio.create_task(webhook.stop())
    await asyncio.wait_for(webhook._idle.wait(), PATIENCE_S)
    let_go.set()
    await ending
    assert json.loads((tmp_path / FILE_NAME).read_text())["waiting"] == []


async def test_what_waits_is_on_the_disk_before_the_process_ends(monkeypatch, tmp_path):
    written = asyncio.Event()
    loop = asyncio.get_running_loop()

    def write(path, data, real=module.write_atomically):
        real(path, data)
        if b'"a"' in data:
            loop.call_soon_threadsafe(written.set)

    monkeypatch.setattr(module, "write_atomically", write)
    webhook = Webhook("http://receiver/x", (), PausedClock(), TripwireLog(), transport=Deaf(), folder=tmp_path)
    webhook.start()
    webhook.add(webhook.message({"run": "r", "wire": "a"}))
    await asyncio.wait_for(written.wait(), PATIENCE_S)  # no `stop`: it may be killed
    assert json.loads((tmp_path / FILE_NAME).read_text())["waiting"][0]["alert"]["wire"] == "a"
    monkeypatch.setattr("rewardserve.service.tripwires.io.webhook._CLOSING_S", 0.01)
    await webhook.stop()


@pytest.mark.parametrize(
    "text",
    ["", "[", "{", "{}", "[]", "[1]", "[" * 100_000, '{"waiting": [], "ended": [1]}', '{"waiting": [1], "ended": []}',
     *[f'{{"waiting": [{each}], "ended": []}}' for each in (
         '{"id": 1, "since": 1, "alert": {"run": "r", "wire": "w"}}', '{"id": "a", "since": "x", "alert": {}}',
         '{"id": "a\\r\\nx: y", "since": 1, "alert": {"run": "r", "wire": "w"}}',
         '{"id": "a", "since": NaN, "alert": {"run": "r", "wire": "w"}}', '{"id": "a", "since": 1, "alert": []}')]],
)  # fmt: skip
async def test_a_damaged_file_is_set_aside_and_delivery_goes_on(tmp_path, text):
    (tmp_path / FILE_NAME).write_text(text)
    receiver = Receiver()
    report = await told(receiver, "a", folder=tmp_path)
    assert receiver.heard == ["a"]
    assert "set aside" in report.failures[0]
    assert (tmp_path / (FILE_NAME + ".broken")).exists()


async def test_a_folder_that_cannot_be_written_stops_no_delivery(tmp_path):
    receiver = Receiver()
    report = await told(receiver, "a", folder=tmp_path / "gone")
    assert receiver.heard == ["a"]
    assert report.failures

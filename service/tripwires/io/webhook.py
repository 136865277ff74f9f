"""Deliver alerts to a receiver, signed as Standard Webhooks (standardwebhooks.com), and retry until they have arrived.

The queue is bounded, and an alert waits for a day at most; the oldest is dropped first, and logged. Where a folder is named,
the queue survives a restart, and so do the ids of messages that have arrived. Knows neither wires nor scores.
"""

from __future__ import annotations

import asyncio
import json
import random
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import Any, Protocol

import httpx

from rewardserve.model.text.text_files import read_bounded
from rewardserve.service.clock import Clock
from rewardserve.service.storage.files import remove_stale_temp_files, set_aside, write_atomically
from rewardserve.service.tripwires.io.events import TripwireEvents

FILE_NAME = "webhook.json"
_FIRST_BACKOFF_S = 0.5
_MAX_BACKOFF_S = 60.0
_MAX_WAIT_S = 86_400.0
_MIN_WAIT_LEFT_S = 3_600.0
"""Shortest remaining time of a message after a restart: its age is by the wall clock, which may have jumped."""
_TIMEOUT_S = 5.0
"""Timeout of an attempt as a whole: httpx bounds each step, and a receiver that sends single bytes would delay all alerts."""
_MAX_WAITING = _MAX_ENDED = 1_000
_MAX_BYTES = 64 * 2**20
_CLOSING_S = 3.0
_FINAL_STATUS_CODES = frozenset({400, 405, 410, 413, 414, 415, 422, 431})
"""Statuses that refuse this message for good. 401, 403 and 404 come from receivers that are being set up."""


class Signer(Protocol):
    """The part of `standardwebhooks.Webhook` that is used."""

    def sign(self, msg_id: str, timestamp: datetime, data: str) -> str:
        """The header `webhook-signature`."""
        ...


@dataclass(frozen=True, slots=True)
class QueuedAlert:
    """An alert to deliver. `id` is the same in every attempt.

    `since`: Unix time at which it was raised, for the file; `raised_at`: the same moment on the monotonic clock, for its age.
    """

    id: str
    since: float
    raised_at: float
    alert: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Attempt:
    """Result of a POST. `reason` is empty on success. `was_answered`: the receiver replied with an error."""

    reason: str = ""
    is_final: bool = False
    was_answered: bool = False
    retry_after_s: float = 0.0


class Webhook:
    """Webhook that POSTs one JSON object per alert to `url`, in order unless one fails. `secrets`: `whsec_...`, each of them signs.

    `folder` keeps the queue over a restart. `rng` spreads the retries.
    """

    def __init__(
        self,
        url: str,
        secrets: Sequence[str],
        clock: Clock,
        events: TripwireEvents,
        *,
        folder: Path | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self._url = url
        self._signers = [_signer(secret) for secret in secrets]
        self._events = events
        self._path = None if folder is None else folder / FILE_NAME
        self._clock = clock
        self._rng = rng or random.Random()
        self._client = httpx.AsyncClient(timeout=None, transport=transport, trust_env=False)
        self._waiting: deque[QueuedAlert] = deque()
        self._ended: deque[str] = deque(maxlen=_MAX_ENDED)
        self._n_failed = 0
        self._changed, self._idle, self._unsaved = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._writing: asyncio.Task[None] | None = None
        self._is_ending = False

    def start(self) -> None:
        """Start the delivery, with the queue of the last process."""
        if self._path is not None:
            remove_stale_temp_files(self._path.parent)
            self._read(self._path)
            self._writing = asyncio.create_task(self._keep(self._path), name="webhook queue")
        if not self._waiting:
            self._idle.set()
        self._tasks.append(asyncio.create_task(self._deliver(), name="webhook"))

    def message(self, alert: Mapping[str, Any]) -> QueuedAlert:
        """The message about an alert, with a new id."""
        return QueuedAlert(f"msg_{uuid.uuid4().hex}", self._clock.unix_time(), self._clock.now(), alert)

    def add(self, message: QueuedAlert) -> None:
        """Queue a message for delivery. Never waits."""
        self._waiting.append(message)
        if len(self._waiting) > _MAX_WAITING:
            self._events.on_alert_lost(self._waiting.popleft().alert, "too many alerts wait for the receiver")
        self._idle.clear()
        self._changed.set()
        self._unsaved.set()

    def restore(self, message: QueuedAlert) -> None:
        """Queue a message of an earlier process, unless that process queued or delivered it."""
        if message.id not in self._ended and message.id not in {each.id for each in self._waiting}:
            self.add(_aged(message.id, message.since, message.alert, self._clock))

    async def stop(self) -> None:
        """Deliver the queue for a short time; the rest is kept for the next start, or lost."""
        if not self._tasks:
            return
        with suppress(TimeoutError):
            await asyncio.wait_for(self._idle.wait(), _CLOSING_S)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._writing is not None:  # a write on a thread cannot be cancelled, and must not come after the last one
            self._is_ending = True
            self._unsaved.set()
            await asyncio.gather(self._writing, return_exceptions=True)
        is_kept = self._path is not None and self._write(self._path, self._text())
        if not is_kept:
            for message in self._waiting:
                self._events.on_alert_lost(message.alert, "the server ended")
        await self._client.aclose()

    # -- delivering -------------------------------------------------------------------------------------------------

    async def _deliver(self) -> None:
        while True:
            while self._waiting:
                await self._try(self._waiting[0])
            self._idle.set()
            self._changed.clear()
            await self._changed.wait()

    async def _try(self, message: QueuedAlert) -> None:
        attempt = await self._post(message)
        is_first = bool(self._waiting) and self._waiting[0] is message  # it may have been dropped meanwhile
        if not attempt.reason or attempt.is_final or self._clock.now() - message.raised_at > _MAX_WAIT_S:
            self._n_failed = 0
            if is_first:
                self._waiting.popleft()
                self._ended.append(message.id)
                self._unsaved.set()
                if attempt.reason:
                    self._events.on_alert_lost(message.alert, attempt.reason)
            return
        self._n_failed += 1
        if self._n_failed == 1:
            self._events.on_alert_delayed(attempt.reason, len(self._waiting))
        await self._pause(attempt)
        if attempt.was_answered and self._waiting and self._waiting[0] is message:
            self._waiting.rotate(-1)  # the others need not wait for one that the receiver fails on

    async def _pause(self, attempt: Attempt) -> None:
        """Back off. A new alert is tried at once where the receiver replied with an error to another one."""
        longest = min(_MAX_BACKOFF_S, _FIRST_BACKOFF_S * 2.0 ** min(self._n_failed - 1, 30))
        seconds = max(self._rng.uniform(longest / 2, longest), min(attempt.retry_after_s, _MAX_BACKOFF_S))
        is_only_this_one = attempt.was_answered and not attempt.retry_after_s
        wake = self._changed if is_only_this_one else asyncio.Event()
        wake.clear()
        await self._clock.wait(wake, self._clock.now() + seconds)

    async def _post(self, message: QueuedAlert) -> Attempt:
        body = json.dumps(message.alert, separators=(",", ":"))
        sent_at = datetime.fromtimestamp(int(self._clock.unix_time()), UTC)
        headers = {
            "content-type": "application/json",
            "webhook-id": message.id,
            "webhook-timestamp": str(int(sent_at.timestamp())),
        }
        if self._signers:
            headers["webhook-signature"] = " ".join(each.sign(message.id, sent_at, body) for each in self._signers)
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                response = await self._answer(body, headers)
        except Exception as error:  # no exception may stop the delivery
            return Attempt(type(error).__name__)
        if response.is_success:
            return Attempt()
        reason = f"the receiver answered {response.status_code}"
        after = response.headers.get("retry-after", "")
        retry_after_s = float(after) if after.isascii() and after.isdigit() and len(after) < 10 else 0.0
        return Attempt(reason, response.status_code in _FINAL_STATUS_CODES, True, retry_after_s)

    async def _answer(self, body: str, headers: Mapping[str, str]) -> httpx.Response:
        """The head of the receiver's reply. Its body is not read: it is not needed, and may be endless."""
        request = self._client.build_request("POST", self._url, content=body.encode(), headers=headers)
        response = await self._client.send(request, stream=True)
        await response.aclose()
        return response

    # -- over a restart ---------------------------------------------------------------------------------------------

    async def _keep(self, path: Path) -> None:
        """Write the queue whenever it has changed; changes during a write are written together."""
        while not self._is_ending:
            await self._unsaved.wait()
            self._unsaved.clear()
            await asyncio.to_thread(self._write, path, self._text())

    def _text(self) -> str:
        waiting = [{"id": m.id, "since": m.since, "alert": m.alert} for m in self._waiting]
        return json.dumps({"waiting": waiting, "ended": list(self._ended)})

    def _write(self, path: Path, text: str) -> bool:
        try:
            write_atomically(path, text.encode())
        except OSError as error:
            self._events.on_queue_failure(f"{path.name} cannot be written: {error.strerror}")
            return False
        return True

    def _read(self, path: Path) -> None:
        try:
            kept = json.loads(read_bounded(path, _MAX_BYTES))
            waiting = [_queued(each, self._clock) for each in kept["waiting"]][-_MAX_WAITING:]
            self._ended.extend(_message_id(each) for each in kept["ended"])
            self._waiting.extend(waiting)
        except FileNotFoundError:
            return
        except OSError as error:
            self._events.on_queue_failure(f"{path.name} cannot be read: {error.strerror}")
        except Exception as error:  # wrong types, half a file, nested without end
            with suppress(OSError):
                set_aside(path)
            self._events.on_queue_failure(f"{path.name} is damaged ({type(error).__name__}) and is set aside")


def _signer(secret: str) -> Signer:
    from standardwebhooks import Webhook as StandardWebhook  # not needed without signatures

    signer: Signer = StandardWebhook(secret)
    return signer


def _queued(kept: Mapping[str, Any], clock: Clock) -> QueuedAlert:
    """The alert that `_text` wrote. Raise for anything else."""
    name, since, alert = _message_id(kept["id"]), float(kept["since"]), kept["alert"]
    if not (isfinite(since) and isinstance(alert["run"], str) and isinstance(alert["wire"], str)):
        raise ValueError("no alert")
    return _aged(name, since, alert, clock)


def _message_id(value: Any) -> str:
    if not (isinstance(value, str) and value.isascii() and value.isprintable() and 0 < len(value) <= 64):
        raise ValueError("no id")
    return value


def _aged(name: str, since: float, alert: Mapping[str, Any], clock: Clock) -> QueuedAlert:
    """A message of an earlier process, with its age by the wall clock."""
    age_s = min(max(clock.unix_time() - since, 0.0), _MAX_WAIT_S - _MIN_WAIT_LEFT_S)
    return QueuedAlert(name, since, clock.now() - age_s, alert)

"""Keep the state of runs over a restart of the server: one file, written at the end, after alerts, and every few seconds.

Runs are converted to bytes on the event loop, one at a time and only after a change; the file is written on a thread. A file that
does not fit is refused as a whole or run by run, with a reason: nothing of it is mixed into another measure. Holds no
text of a conversation.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import msgspec

from rewardserve.model.text.text_files import read_bounded
from rewardserve.service.clock import Clock
from rewardserve.service.storage.files import remove_stale_temp_files, set_aside, write_atomically
from rewardserve.service.tripwires.baseline import BaselineSource, LearnedBaselines
from rewardserve.service.tripwires.io.alert_sender import AlertSender
from rewardserve.service.tripwires.io.events import TripwireEvents
from rewardserve.service.tripwires.io.run_records import (
    FORMAT,
    RestoredRun,
    decode_baselines,
    decode_run,
    encode_baselines,
    encode_run,
)
from rewardserve.service.tripwires.run_monitor import RunMonitor
from rewardserve.service.tripwires.run_state import Run

FILE_NAME = "runs.state"
SAVE_EVERY_S = 10.0
"""Samples of so many seconds are lost when the server is killed."""

MAX_BYTES = 64 * 2**20
_MAGIC = f"rewardserve runs {FORMAT}\n".encode()
_CHECKSUM_SIZE = 32
_TICK_S = 0.2
"""Seconds after which an alert or an acknowledgement is written."""
_MAX_COST = 0.01
"""Share of a core for the conversion to bytes: beyond it the state is written less often."""
_MAX_WRITE_S = 5.0
"""Seconds of a write after which its notifications are sent all the same."""


class _State(msgspec.Struct):
    """The payload of the file. Clocks are those of the process that wrote it; `settings`: digest of what statistics depend on."""

    unix_s: float
    monotonic_s: float
    settings: str
    runs: list[bytes]
    baselines: bytes


class _Encoded(NamedTuple):
    """The bytes of a run as of a change, with the notifications in it."""

    run: Run
    key: tuple[object, ...]
    data: bytes
    held: tuple[str, ...]


class StateKeeper:
    """Keeper of the state of all runs of one monitor, in a folder that no other process uses.

    `settings`: digest of the settings that statistics depend on.
    """

    def __init__(
        self,
        folder: Path,
        monitor: RunMonitor,
        alert_sender: AlertSender,
        learned: LearnedBaselines,
        settings: str,
        clock: Clock,
        events: TripwireEvents,
    ) -> None:
        self._path = folder / FILE_NAME
        self._monitor = monitor
        self._alert_sender = alert_sender
        self._learned = learned
        self._settings = settings
        self._clock = clock
        self._events = events
        self._encoded: dict[str, _Encoded] = {}
        self._baselines = (0, encode_baselines([]))
        self._saved_alerts = 0
        self._next = 0.0
        self._has_failed = False
        self._is_ending = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._writing: asyncio.Task[None] | None = None

    def start(self, source: BaselineSource) -> None:
        """Put back the runs of the last process, which the model of `source` scores from now on, and begin to save."""
        remove_stale_temp_files(self._path.parent)
        state = self._read()
        if state is not None:
            self._restore(state, source)
        self._saved_alerts, self._next = self._monitor.alerts_revision, self._clock.now() + SAVE_EVERY_S
        self._task = asyncio.create_task(self._save_periodically(), name="state of runs")

    async def stop(self) -> None:
        """Save for the last time. Notifications that are still held are passed to the webhook."""
        if self._task is not None:
            self._is_ending.set()
            await asyncio.wait({self._task}, timeout=_MAX_WRITE_S)
            await self.save()
            self._alert_sender.release()

    # -- saving -----------------------------------------------------------------------------------------------------

    async def _save_periodically(self) -> None:
        while not self._is_ending.is_set():
            await self._clock.wait(self._is_ending, self._clock.now() + _TICK_S)
            is_due = self._clock.now() >= self._next and self._has_changed()
            if is_due or self._monitor.alerts_revision != self._saved_alerts:
                await self.save()

    def _has_changed(self) -> bool:
        runs = self._runs()
        return self._has_failed or len(runs) != len(self._encoded) or any(self._is_stale(*each) for each in runs)

    async def save(self) -> None:
        """Write the state as it is now. A failure is reported; notifications are sent all the same."""
        if self._writing is not None:  # of a disk that hangs
            await asyncio.wait({self._writing}, timeout=_MAX_WRITE_S)
        alerts_revision = self._monitor.alerts_revision
        cost_s = 0.0
        for label, run, is_archived in self._runs():
            began = self._clock.now()
            self._encode(label, run, is_archived)
            cost_s += self._clock.now() - began
            await asyncio.sleep(0)
        labels = {label for label, _, _ in self._runs()}
        self._encoded = {label: each for label, each in self._encoded.items() if label in labels}
        self._next = self._clock.now() + max(SAVE_EVERY_S, cost_s / _MAX_COST)
        encoded = [*self._encoded.values()]
        state = _State(
            self._clock.unix_time(), self._clock.now(), self._settings, [e.data for e in encoded], self._all_baselines()
        )
        if self._writing is None or self._writing.done():
            self._saved_alerts = alerts_revision
            self._writing = asyncio.create_task(
                asyncio.to_thread(self._write, state), name="write of the state of runs"
            )
            await asyncio.wait({self._writing}, timeout=_MAX_WRITE_S)
        self._alert_sender.release({each for run in encoded for each in run.held})

    def _runs(self) -> list[tuple[str, Run, bool]]:
        """All runs with their label, and whether they are archived."""
        runs, archived = self._monitor.runs, self._monitor.archived
        return [
            *((label, run, True) for label, run in archived.items()),
            *((label, run, False) for label, run in runs.items()),
        ]

    def _is_stale(self, label: str, run: Run, is_archived: bool) -> bool:
        known = self._encoded.get(label)
        return known is None or known.run is not run or known.key != self._key(label, run, is_archived)

    def _key(self, label: str, run: Run, is_archived: bool) -> tuple[object, ...]:
        return run.revision, is_archived, len(self._alert_sender.held(label))

    def _encode(self, label: str, run: Run, is_archived: bool) -> None:
        """Convert a run, with its incidents and notifications of the same moment, if it has changed."""
        if not self._is_stale(label, run, is_archived):
            return
        held = self._alert_sender.held(label)
        try:
            data = encode_run(
                label, run, is_archived=is_archived, incidents=self._alert_sender.incidents_of(label), waiting=held
            )
        except Exception as error:  # a bug; the other runs are kept
            self._events.on_state_failure(f"a run cannot be written ({type(error).__name__})")
            data = b""
        ids = tuple(each.id for each in held)
        self._encoded[label] = _Encoded(run, self._key(label, run, is_archived), data, ids)

    def _all_baselines(self) -> bytes:
        n, data = self._baselines
        if n != self._learned.n_changes:
            data = encode_baselines(self._learned.items())
            self._baselines = (self._learned.n_changes, data)
        return data

    def _write(self, state: _State) -> None:
        """Write the file, on a thread. The first failure of several is reported."""
        try:
            payload = msgspec.msgpack.encode(state)
            if len(payload) > MAX_BYTES:
                raise ValueError(f"it has more than {MAX_BYTES} bytes")
            write_atomically(self._path, _MAGIC + _checksum(payload) + payload)
            self._has_failed = False
        except Exception as error:  # the next write may succeed
            reason = (error.strerror or "") if isinstance(error, OSError) else str(error)
            if not self._has_failed:
                self._events.on_state_failure(f"{self._path.name} cannot be written: {reason}")
            self._has_failed = True

    # -- restoring --------------------------------------------------------------------------------------------------

    def _read(self) -> _State | None:
        """The state of the last process. None without a file, and for one that is refused."""
        name = self._path.name
        try:
            data = read_bounded(self._path, MAX_BYTES + 2 * _CHECKSUM_SIZE + len(_MAGIC))
            payload = data[len(_MAGIC) + _CHECKSUM_SIZE :]
            if data[: len(_MAGIC)] != _MAGIC:
                raise ValueError("another format")
            if data[len(_MAGIC) : len(_MAGIC) + _CHECKSUM_SIZE] != _checksum(payload):
                raise ValueError("a wrong checksum")
            return msgspec.msgpack.decode(payload, type=_State)
        except FileNotFoundError:
            return None
        except OSError as error:
            self._events.on_state_refused("", f"{name} cannot be read: {error.strerror}")
        except Exception as error:  # half a file, another version, no file of ours
            with suppress(OSError):
                set_aside(self._path)
            reason = str(error) if isinstance(error, ValueError) else type(error).__name__
            self._events.on_state_refused("", f"{name} has {reason}: it is set aside, and all runs begin afresh")
        return None

    def _restore(self, state: _State, source: BaselineSource) -> None:
        later_s = self._clock.now() - state.monotonic_s - max(0.0, self._clock.unix_time() - state.unix_s)
        try:
            for model, run, baseline in decode_baselines(state.baselines):
                self._learned.save(model, run, baseline)
        except Exception as error:  # written by another version
            self._events.on_state_refused("", f"learned baselines cannot be read ({type(error).__name__})")
        n_restored = 0
        for data in filter(None, state.runs):
            try:
                restored = decode_run(data, source, later_s)
            except Exception as error:  # written by another version
                self._events.on_state_refused("", f"a run cannot be read ({type(error).__name__}): it begins afresh")
                continue
            n_restored += 1
            self._restore_run(restored, state.settings)
        self._events.on_state_restored(n_restored, max(0.0, self._clock.unix_time() - state.unix_s))

    def _restore_run(self, restored: RestoredRun, settings: str) -> None:
        label, run = restored.label, restored.run
        if restored.misfit:
            self._events.on_state_refused(label, f"{restored.misfit}: it begins afresh, its alerts stay")
        elif settings != self._settings:
            run.restart_all_statistics()
            self._events.on_state_refused(
                label, "window, audit judge or honeypots are others: its statistics begin afresh, its baseline stays"
            )
        self._monitor.restore(label, run, self._clock.now(), is_archived=restored.is_archived)
        self._alert_sender.restore(label, restored.incidents, restored.waiting)


def _checksum(payload: bytes) -> bytes:
    return blake2b(payload, digest_size=_CHECKSUM_SIZE).digest()

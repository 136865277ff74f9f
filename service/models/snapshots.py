"""Pin the approvals of each run to the model that answered the first request for them.

A snapshot is a model with its calibration and its reward pipeline, all frozen, named by one digest. It keeps no model in memory:
once that model is unloaded, requests are refused, and never answered by another one. Knows nothing of HTTP.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final, Protocol

from rewardserve.service.errors import SnapshotDiffers, SnapshotGone
from rewardserve.service.models.active_models import ActiveModels
from rewardserve.service.models.runtime import ModelRuntime
from rewardserve.service.storage.files import set_aside, write_atomically
from rewardserve.service.tripwires.run_context import RunContext

MAX_RUNS: Final = 10_000
"""Beyond it, the pin that was used least recently is forgotten; a client that sends `snapshot` is not affected."""

_FILE = "snapshots.json"


class SnapshotEvents(Protocol):
    """Receiver of the events of pins."""

    def on_pinned(self, run: str, version: int, snapshot: str) -> None:
        """The first request of a run has pinned its snapshot."""
        ...

    def on_not_saved(self, error: Exception) -> None:
        """The pins cannot be read or written, so they end with this process."""
        ...


class SnapshotPins:
    """Snapshots of the runs of this process. Belongs to one event loop."""

    def __init__(self, active_models: ActiveModels, events: SnapshotEvents) -> None:
        self._active_models = active_models
        self._events = events
        self._pins: dict[str, str] = {}
        self._file: Path | None = None
        self._saving = asyncio.Lock()

    def restore(self, folder: Path) -> None:
        """Read the pins of an earlier process, and keep those of this one in the same file."""
        self._file = folder / _FILE
        try:
            self._pins = _parse(self._file.read_bytes())
        except FileNotFoundError:
            return
        except (OSError, ValueError) as error:
            self._events.on_not_saved(error)
            if isinstance(error, ValueError):
                set_aside(self._file)

    async def for_run(self, context: RunContext, wanted: str | None) -> ModelRuntime:
        """The model that approves for this run; its first request pins it. `wanted`: the snapshot that the client knows.

        Raise `SnapshotGone`, `SnapshotDiffers`, or as `ActiveModels.for_request` at the first request.
        """
        assert context.run is not None
        key = json.dumps([context.owner, context.run])
        pinned = self._pins.get(key)
        if pinned is None:
            runtime = self._active_models.for_request(context.run) if wanted is None else self._find(wanted)
            await self._pin(key, context.run, runtime)
            pinned = self._pins.get(key, runtime.snapshot)  # that of another first request, if it came first
        if wanted is not None and wanted != pinned:
            raise SnapshotDiffers(
                "this run has approvals of another snapshot than the one that this request names: "
                "see docs/how-to/approvals.md",
                snapshot=pinned,
            )
        self._pins[key] = self._pins.pop(key, pinned)  # used most recently
        return self._find(pinned)

    def _find(self, snapshot: str) -> ModelRuntime:
        runtime = self._active_models.with_snapshot(snapshot)
        if runtime is None:
            raise SnapshotGone(
                "the model that the approvals of this run are pinned to is not loaded; see GET /admin/models",
                snapshot=snapshot,
            )
        return runtime

    async def _pin(self, key: str, run: str, runtime: ModelRuntime) -> None:
        """Pin, and return once the pin outlives this process, where there is a folder for it."""
        self._pins.setdefault(key, runtime.snapshot)
        while len(self._pins) > MAX_RUNS:
            del self._pins[next(iter(self._pins))]
        self._events.on_pinned(run, runtime.version, runtime.snapshot)
        if self._file is None:
            return
        async with self._saving:
            try:
                await asyncio.to_thread(write_atomically, self._file, _rendered(self._pins))
            except OSError as error:
                self._events.on_not_saved(error)


def _rendered(pins: Mapping[str, str]) -> bytes:
    return json.dumps(pins).encode()


def _parse(content: bytes) -> dict[str, str]:
    """Read the pins. Raise ValueError for content that is none."""
    pins = json.loads(content)
    if not isinstance(pins, dict) or not all(isinstance(each, str) for each in pins.values()):
        raise ValueError("the file has no pins")
    return dict(list(pins.items())[-MAX_RUNS:])

"""Keep the baselines of runs over a restart of the server: a baseline learned after it could include the exploit.

One small file of numbers for every model and pipeline, in a folder that an operator names; replicas may not share it. Knows no
conversation and no wire.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from math import isfinite
from pathlib import Path

from rewardserve.service.storage.files import read_bounded, remove_stale_temp_files, set_aside, write_atomically
from rewardserve.service.tripwires.baseline import Baseline, BaselineStat, is_component
from rewardserve.service.tripwires.io.events import TripwireEvents

MAX_RUNS = 1_000
MAX_BYTES = 64 * 2**20
_MAX_VALUE = 1e100
"""Largest absolute value of a number: its square is finite."""


class BaselineStore:
    """Baselines by run. `served`: hexadecimal digest of model and pipeline."""

    def __init__(self, folder: Path, served: str, events: TripwireEvents) -> None:
        self._path = folder / f"baselines-{served[:16]}.json"
        self._events = events
        remove_stale_temp_files(folder)
        self._baselines = self._read()
        self._writer = ThreadPoolExecutor(1, "baselines")

    @property
    def baselines(self) -> Mapping[str, Baseline]:
        """The stored baselines by run."""
        return self._baselines

    def save(self, run: str, baseline: Baseline) -> None:
        """Store a baseline soon. Never waits. The oldest ones are dropped."""
        self._baselines.pop(run, None)
        self._baselines[run] = baseline
        while len(self._baselines) > MAX_RUNS:
            del self._baselines[next(iter(self._baselines))]
        self._writer.submit(self._write, json.dumps({name: _plain(each) for name, each in self._baselines.items()}))

    def close(self) -> None:
        """Finish writing."""
        self._writer.shutdown()

    def _read(self) -> dict[str, Baseline]:
        try:
            kept = json.loads(read_bounded(self._path, MAX_BYTES))
            return {run: _baseline(each) for run, each in kept.items()}
        except FileNotFoundError:
            return {}
        except OSError as error:
            self._events.on_baseline_failure(f"{self._path.name} cannot be read: {error.strerror}")
        except Exception as error:  # wrong types, no numbers, half a file, nested without end
            self._events.on_baseline_failure(
                f"{self._path.name} is damaged ({type(error).__name__}) and is set aside: {self._set_aside()}"
            )
        return {}

    def _set_aside(self) -> str:
        try:
            return set_aside(self._path).name
        except OSError as error:
            return str(error.strerror)

    def _write(self, text: str) -> None:
        try:
            write_atomically(self._path, text.encode())
        except OSError as error:
            self._events.on_baseline_failure(f"{self._path.name} cannot be written: {error.strerror}")


def _plain(baseline: Baseline) -> dict[str, object]:
    return {"stats": {name: asdict(each) for name, each in baseline.stats.items()}, "saturation": baseline.saturation}


def _baseline(kept: dict[str, object]) -> Baseline:
    stats, saturation = kept["stats"], kept["saturation"]
    if not isinstance(stats, dict) or not all(name.isascii() and name.isidentifier() for name in stats):
        raise TypeError("no baseline")
    known = {name: BaselineStat(**{of: _number(value) for of, value in each.items()}) for name, each in stats.items()}
    if any(each.n < 0 or each.std < 0 or (each.std == 0 and not is_component(name)) for name, each in known.items()):
        raise ValueError("no deviation")
    return Baseline(known, None if saturation is None else _number(saturation))


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or abs(value) > _MAX_VALUE:
        raise TypeError("no number")
    return float(value)

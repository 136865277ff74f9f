"""Keeps what runs have shown to be usual over a restart of the server: a run must not be compared with what it has become.

One small file of numbers for every model and pipeline, in a folder that an operator names; replicas may not share it. Knows no
conversation and no wire.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from math import isfinite
from pathlib import Path

from rewardserve.service.storage.files import read_bounded, remove_stale_temp_files, set_aside, write_atomically
from rewardserve.service.tripwires.baseline import Baseline, BaselineStat, is_component

MOST_RUNS = 1_000
MOST_BYTES = 64 * 2**20
_LARGEST = 1e100
"""Of any number: its square is still one."""


class BaselineStore:
    """By run. `served` tells one model and pipeline from another. `failed` hears of what could not be written or read."""

    def __init__(self, folder: Path, served: str, failed: Callable[[str], None]) -> None:
        self._path = folder / f"usual-{served.rpartition(':')[2][:16]}.json"
        self._failed = failed
        remove_stale_temp_files(folder)
        self._known = self._read()
        self._writer = ThreadPoolExecutor(1, "references")

    @property
    def known(self) -> Mapping[str, Baseline]:
        """What was kept."""
        return self._known

    def keep(self, run: str, baseline: Baseline) -> None:
        """Write it down, soon. Never waits. The runs that were kept first make room."""
        self._known.pop(run, None)
        self._known[run] = baseline
        while len(self._known) > MOST_RUNS:
            del self._known[next(iter(self._known))]
        self._writer.submit(self._write, json.dumps({name: _plain(each) for name, each in self._known.items()}))

    def close(self) -> None:
        """Write what is to be written."""
        self._writer.shutdown()

    def _read(self) -> dict[str, Baseline]:
        try:
            kept = json.loads(read_bounded(self._path, MOST_BYTES))
            return {run: _baseline(each) for run, each in kept.items()}
        except FileNotFoundError:
            return {}
        except OSError as error:
            self._failed(f"{self._path.name} cannot be read: {error.strerror}")
        except (
            Exception
        ) as error:  # wrong types, no numbers, half a file, nested without end: whatever it is, it is no reference
            self._failed(f"{self._path.name} is damaged ({type(error).__name__}) and is set aside: {self._set_aside()}")
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
            self._failed(f"{self._path.name} cannot be written: {error.strerror}")


def _plain(baseline: Baseline) -> dict[str, object]:
    usual = {name: asdict(each) for name, each in baseline.usual.items()}
    return {"usual": usual, "saturation": baseline.saturation}


def _baseline(kept: dict[str, object]) -> Baseline:
    usual, saturation = kept["usual"], kept["saturation"]
    if not isinstance(usual, dict) or not all(name.isascii() and name.isidentifier() for name in usual):
        raise TypeError("no reference")
    known = {name: BaselineStat(**{of: _number(value) for of, value in each.items()}) for name, each in usual.items()}
    if any(each.n < 0 or each.std < 0 or (each.std == 0 and not is_component(name)) for name, each in known.items()):
        raise ValueError("no deviation")
    return Baseline(known, None if saturation is None else _number(saturation))


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value) or abs(value) > _LARGEST:
        raise TypeError("no number")
    return float(value)

"""Keeps what runs have shown to be usual over a restart of the server: a run must not be compared with what it has become.

One small file of numbers for every model and pipeline, in a folder that an operator names; replicas may not share it. Knows no
conversation and no wire.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from service.tripwires.reference import Reference, Usual

MOST_RUNS = 1_000


class References:
    """By run. `served` tells one model and pipeline from another. `failed` hears of what could not be written or read."""

    def __init__(self, folder: Path, served: str, failed: Callable[[str], None]) -> None:
        self._path = folder / f"usual-{served.rpartition(':')[2][:16]}.json"
        self._failed = failed
        self._known = self._read()
        self._writer = ThreadPoolExecutor(1, "references")

    @property
    def known(self) -> Mapping[str, Reference]:
        """What was kept."""
        return self._known

    def keep(self, run: str, reference: Reference) -> None:
        """Write it down, soon. Never waits. The runs that were kept first make room."""
        self._known.pop(run, None)
        self._known[run] = reference
        while len(self._known) > MOST_RUNS:
            del self._known[next(iter(self._known))]
        self._writer.submit(self._write, json.dumps({name: _plain(each) for name, each in self._known.items()}))

    def close(self) -> None:
        """Write what is to be written."""
        self._writer.shutdown()

    def _read(self) -> dict[str, Reference]:
        try:
            kept = json.loads(self._path.read_text(encoding="utf-8"))
            return {run: _reference(each) for run, each in kept.items()}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            self._failed(f"{self._path.name} cannot be read: {type(error).__name__}")
            return {}

    def _write(self, text: str) -> None:
        draft = self._path.with_suffix(".new")
        try:
            draft.write_text(text, encoding="utf-8")
            os.replace(draft, self._path)
        except OSError as error:
            self._failed(f"{self._path.name} cannot be written: {error.strerror}")


def _plain(reference: Reference) -> dict[str, object]:
    usual = {name: asdict(each) for name, each in reference.usual.items()}
    return {"usual": usual, "saturation": reference.saturation}


def _reference(kept: dict[str, object]) -> Reference:
    usual, saturation = kept["usual"], kept["saturation"]
    if not isinstance(usual, dict) or not isinstance(saturation, float | int | None):
        raise TypeError("no reference")
    return Reference({name: Usual(**each) for name, each in usual.items()}, saturation)

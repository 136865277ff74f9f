"""Faulty server for drills: SIGUSR1 changes the value head of the served model, SIGUSR2 makes every scoring request fail.

For drills only. Takes the flags of `rewardserve serve`:

    python -m benchmarks.faulty_server --port 0
"""

from __future__ import annotations

import signal
import sys
from typing import Any

import torch

from rewardserve.cli import main
from rewardserve.model.backends import BACKENDS, LoadedModel, ModelSpec
from rewardserve.model.backends import torch as backend
from rewardserve.service.scoring import Scoring

_SHARE = 0.05
"""Share of every head weight that is added to it: a change that is not visible in a plot of rewards."""

_loaded: list[Any] = []


def load(spec: ModelSpec) -> LoadedModel:
    """Load as the torch backend does, and keep the network for `tamper`."""
    loaded = backend.load(spec)
    _loaded.append(loaded.scorer._network)  # type: ignore[attr-defined]
    return loaded


def tamper(*_: object) -> None:
    """Change the heads in memory."""
    with torch.no_grad():
        for network in _loaded:
            network.heads.weight.mul_(1.0 + _SHARE)


def break_scoring(*_: object) -> None:
    """Make every further scoring request end in a 500."""

    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("broken on purpose, for a drill")

    Scoring.score = broken  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    signal.signal(signal.SIGUSR2, break_scoring)
    signal.signal(signal.SIGUSR1, tamper)
    BACKENDS["torch"] = "__main__:load"
    main(["serve", *sys.argv[1:]])

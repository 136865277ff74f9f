"""CPU seconds and losses of the steps of a `transformers.Trainer`, and the peak memory of its process. Imports no other module."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers.trainer_callback import TrainerCallback


class StepMeter(TrainerCallback):
    """Clocks at the end of each step. The first step is not counted: it allocates, and makes the optimizer's state."""

    def __init__(self) -> None:
        self._cpu_s: list[float] = []
        self._wall_s: list[float] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Read the clocks."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self._cpu_s.append(time.process_time())
        self._wall_s.append(time.perf_counter())

    def record(self, history: Sequence[Mapping[str, float]]) -> str:
        """JSON of the record: seconds of the counted steps, losses of all, bytes."""
        return json.dumps({
            "cpu_s": self._cpu_s[-1] - self._cpu_s[0],
            "wall_s": self._wall_s[-1] - self._wall_s[0],
            "counted_steps": len(self._cpu_s) - 1,
            "losses": [entry["loss"] for entry in history if "loss" in entry],
            "peak_rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            "peak_cuda": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
        })  # fmt: skip

"""The processes that accelerate or torchrun started."""

from __future__ import annotations

import torch
from accelerate import PartialState


def process() -> PartialState:
    """This process among those started by accelerate or torchrun; otherwise the only one."""
    return PartialState(cpu=not torch.cuda.is_available())


def n_processes() -> int:
    """Number of processes started by accelerate or torchrun."""
    return int(process().num_processes)

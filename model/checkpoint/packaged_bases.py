"""Base models that are installed as Python packages, by family; adapters and bare heads name them as `family:variant`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rewardserve.model.checkpoint.record import CheckpointError


def _smollm2(variant: str) -> Path:
    from rewardserve.model.default.base_model import BaseModelError, ensure_base_model

    if not variant.isdecimal():
        raise CheckpointError(
            "smollm2-135m-instruct needs its number of layers: smollm2-135m-instruct:30 is the whole model"
        )
    try:
        return ensure_base_model(int(variant))
    except (BaseModelError, ValueError) as error:
        raise CheckpointError(f"smollm2-135m-instruct:{variant}: {error}") from error


PACKAGED_BASES: dict[str, Callable[[str], Path]] = {"smollm2-135m-instruct": _smollm2}

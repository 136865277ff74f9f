"""Base models that are installed as Python packages, by family; adapters and bare heads name them as `family:variant`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rewardserve.model.checkpoint.record import CheckpointError
from rewardserve.model.text.nearest_word import nearest_word


def _smollm2(variant: str) -> Path:
    from rewardserve.model.default.base_model import BaseModelError, ensure_base_model

    if not variant.isdecimal():
        raise CheckpointError(
            "smollm2-135m-instruct needs its number of layers after a colon: smollm2-135m-instruct:30 is the whole model"
        )
    try:
        return ensure_base_model(int(variant))
    except (BaseModelError, ValueError) as error:
        raise CheckpointError(f"smollm2-135m-instruct:{variant}: {error}") from error


def packaged_base_like(name: str) -> str:
    """End a sentence about a name that is no model: with the packaged base, or default model, that it probably means."""
    from rewardserve.model.default import DEFAULT_MODEL

    family, _, variant = name.partition(":")
    near = nearest_word(family, [*PACKAGED_BASES, DEFAULT_MODEL])
    if near in PACKAGED_BASES:
        near += f":{variant if variant.isdecimal() else 30}"
    return f"; did you mean {near}?" if near else "."


PACKAGED_BASES: dict[str, Callable[[str], Path]] = {"smollm2-135m-instruct": _smollm2}

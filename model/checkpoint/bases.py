"""Base models that arrive as packages, by family; adapters name them as `family:variant`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path


def _smollm2(variant: str) -> Path:
    from model.default.trunk import ensure_trunk

    return ensure_trunk(int(variant))


BASES: dict[str, Callable[[str], Path]] = {"smollm2-135m-instruct": _smollm2}

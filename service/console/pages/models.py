"""Models: the versions in memory, what a shadow measured, and the swap with a confirmation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from rewardserve.service.console.parts import Console
from rewardserve.service.models.deployment import ModelStatus


def view(console: Console, confirm: str) -> dict[str, Any]:
    """The variables of the page. `confirm` is the version that is about to go into service, "" for none."""
    status = console.active_models.admin().status
    chosen = next((each for each in status.models if str(each.version) == confirm), None)
    return {
        "deployment": status,
        "confirm": chosen if chosen and chosen.version != status.serving else None,
        "shadow": shadow,
    }


def shadow(model: ModelStatus) -> Iterator[tuple[str, str]]:
    """The numbers that a shadow measured, by name."""
    if model.shadow is None:
        return
    for name, value in asdict(model.shadow).items():
        if isinstance(value, int | float):
            yield name.replace("_", " "), f"{value:.3g}" if isinstance(value, float) else f"{value:,}"

"""The record that walks through the reward pipeline."""

from __future__ import annotations

from typing import NamedTuple


class Reward(NamedTuple):
    """One score on its way to the trainer. All three numbers are kept and returned.

    `raw` is what the value head said, `normalized` is (raw - mean) / std or None where nothing was
    normalised, `value` is what the trainer gets. `notes` says what each stage did. A named tuple: every stage
    makes one for every sample.
    """

    raw: float
    value: float
    normalized: float | None = None
    notes: tuple[str, ...] = ()

"""What a trip wire is told of a sample, and what it says.

Pure records. Nothing here, or in any wire, changes a reward.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

Severity = Literal["note", "warn", "page"]
"""A note is information; a warning is one wire; a page wakes somebody: a hard wire, or the vote of several."""


class Observation(NamedTuple):
    """One scored sample of a run.

    `group` and `key` are hashes: of the prompt, and of what makes a retry the same sample (None: nobody can tell).
    `value` is the reward as sent, `level` the combined score before penalties and shape. `traits` are the values of
    `model.traits.NAMES`, those of `OF_IDS` where there was no text, none where nobody knows where the response begins.
    `audit` is what the audit judge gave, where it was asked. `spread` is the members' disagreement. `distance` is how unlike
    those of the calibration its hidden state is, where the model knows. `evidence` names the sample in an alarm: a hash, never
    text.
    """

    group: int
    key: int | None
    value: float
    level: float
    is_capped: bool
    traits: tuple[float, ...]
    text_digest: int | None = None
    spread: float | None = None
    distance: float | None = None
    audit: float | None = None
    evidence: str = ""


class Finding(NamedTuple):
    """A wire has tripped: `statistic` went beyond `threshold`."""

    wire: str
    severity: Severity
    statistic: float
    threshold: float
    step: int | None
    evidence: tuple[str, ...]

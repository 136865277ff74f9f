"""What a trip wire is told of a sample, and what it says.

Pure records. Nothing here, or in any wire, changes a reward.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

VOTE = "vote"
"""The wire that trips when several others have."""

CANARY = "canary"
"""The wire that trips when the same model gives canaries other scores: somebody or something has changed it."""

Severity = Literal["note", "warn", "page"]
"""A note is information; a warning is one wire; a page wakes somebody: a hard wire, or the vote of several."""


Cause = Literal["policy", "client", "model"]
"""Behind an alert: what the policy has learnt to do, how a client numbers its samples, or a changed model. Alerts of one run and
one cause are one incident: the first is a notification, later ones are updates of it. Texts that are searched for, too, since
a policy that has collapsed onto one text looks the same."""


class SampleFeatures(NamedTuple):
    """One scored sample of a run.

    `group` and `key` are hashes: of the prompt, and of what makes a retry the same sample (None: nobody can tell).
    `value` is the reward as sent, `level` the combined score before penalties and shape. `traits` are the values of
    `rewardserve.model.traits.NAMES`, those of `OF_IDS` where there was no text, none where nobody knows where the response begins.
    `audit` is what the audit judge gave, where it was asked. `spread` is the members' disagreement. `distance` is how unlike
    those of the calibration its hidden state is, where the model knows. `evidence` names the sample in an alert: a hash, never
    text. `parts` are what each part adds, where a reward has several. `is_honeypot_hit` is None where the prompt was not planted.
    """

    group: int
    key: int | None
    value: float
    score: float
    is_capped: bool
    traits: tuple[float, ...]
    text_digest: int | None = None
    spread: float | None = None
    distance: float | None = None
    audit: float | None = None
    evidence: str = ""
    components: tuple[float, ...] = ()
    is_honeypot_hit: bool | None = None


class Alert(NamedTuple):
    """A wire has tripped: `statistic` went beyond `threshold`."""

    wire: str
    severity: Severity
    statistic: float
    threshold: float
    step: int | None
    evidence: tuple[str, ...]

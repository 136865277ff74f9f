"""The alert of a trip wire, its severity and its cause. Pure records."""

from __future__ import annotations

from typing import Literal, NamedTuple

VOTE = "vote"
"""Name of the alert by the votes of several wires."""

CANARY = "canary"
"""Name of the alert for canaries whose scores have changed although the model has not."""

Severity = Literal["note", "warn", "page"]
"""Severity: a note is information, a warning is one wire, a page is a hard wire or the votes of several."""

Cause = Literal["policy", "client", "model"]
"""Cause of an alert: a policy that exploits the reward, a client that uses an id twice, or a changed model. Alerts of one run
and one cause are one incident: the first is a notification, later ones are updates of it. `probing` counts as policy, because
a policy that has collapsed onto one text for a prompt looks the same."""


class Alert(NamedTuple):
    """Alert of a wire: `statistic` exceeded `threshold`. `evidence` are hashes of samples that show it.

    `since_step`: the latest step of the run when it did. `task`: the statistic is that of the samples of one task; "": of all
    samples.
    """

    wire: str
    severity: Severity
    statistic: float
    threshold: float
    since_step: int | None
    evidence: tuple[str, ...]
    task: str = ""

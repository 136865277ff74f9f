"""Choose the alerts to send: one notification per run and cause, and an update when it becomes a page.

An exploit trips many wires within minutes. The first opens an incident; the others belong to it until every wire that was
reported for it has been acknowledged, or the run is forgotten. Pure.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple
from uuid import uuid4

from rewardserve.service.tripwires.alert import Alert, Cause, Severity
from rewardserve.service.tripwires.wires import cause_of

_RANK: dict[Severity, int] = {"note": 0, "warn": 1, "page": 2}
_MAX_OPEN = 4_096


class Notification(NamedTuple):
    """A notification to send; `is_update`: its incident was sent before."""

    incident_id: str
    cause: Cause
    is_update: bool


@dataclass(slots=True)
class Incident:
    """An open incident: the severity that was sent, and the wires that were reported for it."""

    severity: Severity = "note"
    id: str = field(default_factory=lambda: uuid4().hex)
    wires: set[str] = field(default_factory=set)


class IncidentTracker:
    """The open incidents of runs. Belongs to one event loop."""

    def __init__(self) -> None:
        self._open: OrderedDict[tuple[str, Cause], Incident] = OrderedDict()

    def of_run(self, run: str) -> dict[Cause, Incident]:
        """The open incidents of a run, by cause."""
        return {cause: incident for (of, cause), incident in self._open.items() if of == run}

    def restore(self, run: str, incidents: Mapping[Cause, Incident]) -> None:
        """Open incidents of a run as they were before a restart."""
        self._open.update({(run, cause): incident for cause, incident in incidents.items()})

    def notification_for(self, run: str, alert: Alert, tripped: Collection[str]) -> Notification | None:
        """The notification for an alert; None: nothing to send. `tripped` are all wires of the run whose alerts are active."""
        if alert.severity == "note":
            return None
        cause = cause_of(alert.wire)
        known = self._open.get((run, cause))
        is_update = known is not None and not (known.wires - {alert.wire}).isdisjoint(tripped)
        if known is None or not is_update:
            known = self._open[run, cause] = Incident()
        elif _RANK[alert.severity] <= _RANK[known.severity]:
            known.wires.add(alert.wire)
            return None
        known.wires.add(alert.wire)
        known.severity = alert.severity
        self._open.move_to_end((run, cause))
        if len(self._open) > _MAX_OPEN:
            self._open.popitem(last=False)
        return Notification(known.id, cause, is_update)


def most_severe_first(alerts: Collection[Alert]) -> list[Alert]:
    """Sort alerts of one moment, so that the most severe one opens their incident."""
    return sorted(alerts, key=lambda alert: -_RANK[alert.severity])

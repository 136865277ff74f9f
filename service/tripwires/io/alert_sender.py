"""Send alerts to the log and to the webhook: one notification for each incident.

Where the state of runs is kept, a notification is held until a state with its alert is written: else a server that is killed
in between would raise the alert again, and send it twice. Knows nothing of samples.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from rewardserve.service.tripwires.alert import Alert, Cause
from rewardserve.service.tripwires.incidents import Incident, IncidentTracker
from rewardserve.service.tripwires.io.events import TripwireEvents
from rewardserve.service.tripwires.io.webhook import QueuedAlert, Webhook
from rewardserve.service.tripwires.run_context import UnnamedClient
from rewardserve.service.tripwires.run_monitor import RunMonitor
from rewardserve.service.tripwires.run_state import Run
from rewardserve.service.tripwires.wires import ALERT_TEXTS, ALERT_UNITS


class AlertSender:
    """Sender of the alerts of one monitor. Without a webhook alerts are only logged. `holds`: until `release`."""

    def __init__(
        self, monitor: RunMonitor, events: TripwireEvents, webhook: Webhook | None = None, *, holds: bool = False
    ) -> None:
        self._monitor = monitor
        self._events = events
        self._webhook = webhook
        self._holds = holds
        self._held: dict[str, list[QueuedAlert]] = {}
        self._incidents = IncidentTracker()
        self._unnamed: dict[str, Run] = {}

    def send(self, run: str, alert: Alert, model: Mapping[str, Any]) -> None:
        """Log a new alert, and queue a notification if its incident needs one. `model`: fields that identify the model."""
        state = self._monitor.runs.get(run)
        notification = self._incidents.notification_for(run, alert, state.alerts if state is not None else ())
        if self._webhook is not None and notification is not None:
            text, unit = ALERT_TEXTS[alert.wire], ALERT_UNITS[alert.wire]
            message = self._webhook.message({"run": run, **alert._asdict(), "summary": text.summary,
                                             "confidence": text.confidence, "action": text.action,
                                             "statistic_text": unit.measured(alert.statistic),
                                             "threshold_text": unit.number(alert.threshold),
                                             **notification._asdict(), **model})  # fmt: skip
            if self._holds:
                self._held.setdefault(run, []).append(message)
            else:
                self._webhook.add(message)
        self._events.on_alert(run, alert)

    def report_unnamed(self, run: str, client: UnnamedClient) -> None:
        """Log a client without a run, once while the run is watched."""
        state = self._monitor.runs.get(run)
        if state is not None and state is not self._unnamed.get(run):
            self._unnamed = {label: each for label, each in self._unnamed.items() if label in self._monitor.runs}
            self._unnamed[run] = state
            self._events.on_unnamed_run(run, client)

    def incidents_of(self, run: str) -> Mapping[Cause, Incident]:
        """The open incidents of a run."""
        return self._incidents.of_run(run)

    def held(self, run: str) -> Sequence[QueuedAlert]:
        """The notifications of a run that are held."""
        return self._held.get(run, ())

    def release(self, ids: Collection[str] | None = None) -> None:
        """Pass held notifications to the webhook; None: all of them."""
        for run, messages in [*self._held.items()]:
            released = [each for each in messages if ids is None or each.id in ids]
            if self._webhook is not None:
                for each in released:
                    self._webhook.add(each)
            self._held[run] = [each for each in messages if each not in released]
            if not self._held[run]:
                del self._held[run]

    def restore(self, run: str, incidents: Mapping[Cause, Incident], waiting: Sequence[QueuedAlert]) -> None:
        """Put back the incidents of a run of an earlier process, and the notifications that it held."""
        self._incidents.restore(run, incidents)
        if self._webhook is not None:
            for each in waiting:
                self._webhook.restore(each)

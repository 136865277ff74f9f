"""Send alerts to the log and to the webhook: one notification for each incident.

Knows nothing of samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rewardserve.service.tripwires.alert import Alert
from rewardserve.service.tripwires.incidents import IncidentTracker
from rewardserve.service.tripwires.io.events import TripwireEvents
from rewardserve.service.tripwires.io.webhook import Webhook
from rewardserve.service.tripwires.run_monitor import RunMonitor
from rewardserve.service.tripwires.wires import ALERT_TEXTS, ALERT_UNITS


class AlertSender:
    """Sender of the alerts of one monitor. Without a webhook alerts are only logged."""

    def __init__(self, monitor: RunMonitor, events: TripwireEvents, webhook: Webhook | None = None) -> None:
        self._monitor = monitor
        self._events = events
        self._webhook = webhook
        self._incidents = IncidentTracker()

    def send(self, run: str, alert: Alert, model: Mapping[str, Any]) -> None:
        """Log a new alert, and queue a notification if its incident needs one. `model`: fields that identify the model."""
        state = self._monitor.runs.get(run)
        notification = self._incidents.notification_for(run, alert, state.alerts if state is not None else ())
        if self._webhook is not None and notification is not None:
            text, unit = ALERT_TEXTS[alert.wire], ALERT_UNITS[alert.wire]
            self._webhook.enqueue({"run": run, **alert._asdict(), "summary": text.summary, "confidence": text.confidence,
                                   "action": text.action,
                                   "statistic_text": unit.measured(alert.statistic),
                                   "threshold_text": unit.measured(alert.threshold), **notification._asdict(),
                                   **model})  # fmt: skip
        self._events.on_alert(run, alert)

"""Count and log the events of trip wires. Logs no text of a conversation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rewardserve.service.observability import logs
from rewardserve.service.observability.metrics import Metrics
from rewardserve.service.tripwires.alert import Alert
from rewardserve.service.tripwires.run_context import UnnamedClient


@dataclass(frozen=True, slots=True)
class TripwireReport:
    """Receiver of the events of trip wires that counts and logs them."""

    metrics: Metrics

    def on_alert(self, run: str, alert: Alert) -> None:
        log = logs.logger("tripwires")
        level = log.error if alert.severity == "page" else log.warning if alert.severity == "warn" else log.info
        level("tripwire", run=run, wire=alert.wire, severity=alert.severity, statistic=round(alert.statistic, 4),
              threshold=alert.threshold, step=alert.since_step, evidence=list(alert.evidence))  # fmt: skip

    def on_alert_lost(self, message: Mapping[str, Any], reason: str) -> None:
        self.metrics.observe_alert_lost()
        logs.logger("webhook").error("alert_not_delivered", run=message["run"], wire=message["wire"], reason=reason)

    def on_alert_delayed(self, reason: str, n_waiting: int) -> None:
        logs.logger("webhook").warning("alert_delayed", reason=reason, waiting=n_waiting)

    def on_queue_failure(self, reason: str) -> None:
        logs.logger("webhook").error("alerts_not_kept", reason=reason)

    def on_audit_skipped(self, n_samples: int) -> None:
        self.metrics.observe_audit_skipped(n_samples)

    def on_evidence_failure(self, reason: str) -> None:
        logs.logger("evidence").error("evidence_not_written", reason=reason)

    def on_attribution_failure(self, reason: str) -> None:
        logs.logger("attribution").error("attribution_failed", reason=reason)

    def on_unnamed_run(self, run: str, client: UnnamedClient) -> None:
        logs.logger("tripwires").warning("unnamed_run", run=run, client=client.detail)

    def on_state_failure(self, reason: str) -> None:
        logs.logger("state").error("state_save_failed", reason=reason)

    def on_state_refused(self, run: str, reason: str) -> None:
        logs.logger("state").warning("state_refused", run=run or None, reason=reason)

    def on_state_restored(self, n_runs: int, age_s: float) -> None:
        logs.logger("state").info("state_restored", runs=n_runs, age_s=round(age_s, 1))

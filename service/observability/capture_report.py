"""Count and log the events of capture. Logs no text of a conversation."""

from __future__ import annotations

from dataclasses import dataclass

from rewardserve.service.observability import logs
from rewardserve.service.observability.metrics import Metrics


@dataclass(frozen=True, slots=True)
class CaptureReport:
    """Receiver of the events of capture."""

    metrics: Metrics

    def on_captured(self, n_stored: int, n_known: int) -> None:
        self.metrics.observe_captured(n_stored, "stored")
        self.metrics.observe_captured(n_known, "known")

    def on_capture_dropped(self, n: int) -> None:
        self.metrics.observe_captured(n, "dropped")

    def on_capture_failure(self, reason: str) -> None:
        logs.logger("review").error("capture_failed", reason=reason)

    def on_capture_recovered(self, n_dropped: int) -> None:
        logs.logger("review").warning("capture_recovered", dropped=n_dropped)

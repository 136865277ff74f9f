"""The protocol of notifications about alerts, and about failures of the parts that do I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from rewardserve.service.tripwires.alert import Alert
from rewardserve.service.tripwires.run_context import UnnamedClient


class TripwireEvents(Protocol):
    """Receiver of events of trip wires, for log and metrics. Methods that report failures of files may be called on any thread."""

    def on_alert(self, run: str, alert: Alert) -> None:
        """A wire has tripped."""
        ...

    def on_alert_lost(self, message: Mapping[str, Any], reason: str) -> None:
        """The message about an alert is dropped and will not be delivered."""
        ...

    def on_alert_delayed(self, reason: str, n_waiting: int) -> None:
        """The first failure of several: the delivery is retried."""
        ...

    def on_queue_failure(self, reason: str) -> None:
        """The queue of the webhook cannot be written, or could not be read."""
        ...

    def on_audit_skipped(self, n_samples: int) -> None:
        """The queue of the audit judge was full."""
        ...

    def on_evidence_failure(self, reason: str) -> None:
        """Texts behind an alert are not written."""
        ...

    def on_attribution_failure(self, reason: str) -> None:
        """The report of an alert could not be computed."""
        ...

    def on_unnamed_run(self, run: str, client: UnnamedClient) -> None:
        """A client has begun to send samples without a run."""
        ...

    def on_state_failure(self, reason: str) -> None:
        """The state of runs is not written."""
        ...

    def on_state_refused(self, run: str, reason: str) -> None:
        """A state of an earlier process is not used, as a whole or for one run."""
        ...

    def on_state_restored(self, n_runs: int, age_s: float) -> None:
        """The runs of an earlier process go on, so many seconds after it wrote them."""
        ...

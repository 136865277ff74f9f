"""The protocol of notifications about batches, the scorer's state and encoding bugs."""

from __future__ import annotations

from typing import Protocol

from rewardserve.service.inference.outcomes import BatchResult
from rewardserve.service.inference.watchdog import ScorerState


class InferenceEvents(Protocol):
    """Receiver of events between samples and scores."""

    def on_batch(self, result: BatchResult) -> None:
        """A forward has ended, with or without scores."""
        ...

    def on_scorer_state(self, state: ScorerState) -> None:
        """The state of the scorer has changed."""
        ...

    def on_encode_bug(self, error: BaseException) -> None:
        """An encoder has raised an unexpected exception."""
        ...

"""Exceptions of the client. All of them can be pickled: Ray carries exceptions between processes.

No message contains conversation text or a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class RewardClientError(Exception):
    """Base class of the exceptions of this package."""


class Misconfigured(RewardClientError, ValueError):
    """Argument or environment variable that cannot be used."""


class WrongType(Misconfigured, TypeError):
    """Argument of a type that cannot be used."""


class RequestRefused(RewardClientError):
    """Permanent refusal of a request: wrong key, wrong fields, wrong path. A retry cannot succeed.

    `sample` is the index, in the list given to the call, of the sample that the error names; None if unknown.
    """

    def __init__(
        self, status: int, code: str, message: str, details: Mapping[str, Any], sample: int | None = None
    ) -> None:
        super().__init__(status, code, message, details, sample)
        self.status = status
        self.code = code
        self.message = message
        self.details = details
        self.sample = sample

    def __str__(self) -> str:
        """Status, code and message; the index of the sample if known."""
        where = "" if self.sample is None else f" (sample {self.sample} of this call)"
        return f"{self.status} {self.code}: {self.message}{where}"


class Unavailable(RewardClientError):
    """No server replied in time. `reason` describes the failure of the last attempt."""

    def __init__(self, reason: str, n_failed: int, n_samples: int) -> None:
        super().__init__(reason, n_failed, n_samples)
        self.reason = reason
        self.n_failed = n_failed
        self.n_samples = n_samples

    def __str__(self) -> str:
        """Number of samples without a result, and the reason."""
        return f"no result for {self.n_failed} of {self.n_samples} samples: {self.reason}"


class MixedModels(RewardClientError):
    """The rewards of one call come from different models, contracts, calibrations or pipelines."""


class NotScored(RewardClientError):
    """A sample has no reward, and the trainer has no way to leave it out."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        """Code and message."""
        return f"{self.code}: {self.message}"


class RunBlocked(NotScored):
    """A trip wire of the server blocks this run until an operator acknowledges the alert."""

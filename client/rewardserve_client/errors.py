"""Everything that the client raises. All of it survives pickling: Ray carries exceptions between processes.

No message holds a part of a conversation or a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class RewardClientError(Exception):
    """Whatever this package raises."""


class Misconfigured(RewardClientError, ValueError):
    """An argument or an environment variable that cannot be used."""


class WrongType(Misconfigured, TypeError):
    """An argument of a type that cannot be used."""


class RequestRefused(RewardClientError):
    """The server will never take this request: wrong key, wrong fields, wrong path. Trying again is no use.

    `sample` is the place, in the list that was given, of the sample that the server complains of; None: not known.
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
        """Status, code and message; which sample, if that is known."""
        where = "" if self.sample is None else f" (sample {self.sample} of this call)"
        return f"{self.status} {self.code}: {self.message}{where}"


class Unavailable(RewardClientError):
    """No server answered in time. `reason` is what the last attempt met with."""

    def __init__(self, reason: str, n_failed: int, n_samples: int) -> None:
        super().__init__(reason, n_failed, n_samples)
        self.reason = reason
        self.n_failed = n_failed
        self.n_samples = n_samples

    def __str__(self) -> str:
        """How many have no answer, and why."""
        return f"no answer for {self.n_failed} of {self.n_samples} samples: {self.reason}"


class MixedModels(RewardClientError):
    """The rewards of one call were made by models, contracts, calibrations or pipelines that differ."""


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
    """A trip wire of the server has ended the service of this run until somebody acknowledges its alarm."""

"""Limits of one request and of the server, as `GET /model` reports them."""

from __future__ import annotations

from dataclasses import dataclass

from rewardserve.service.errors import TooManySamples


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Limits of one request and of admission."""

    max_samples_per_request: int
    max_body_bytes: int
    admission_max_samples: int
    admission_max_tokens: int

    def check_sample_count(self, n: int, unit: str) -> None:
        """Raise `TooManySamples` if `n` exceeds the limit of one request."""
        limit = self.max_samples_per_request
        if n > limit:
            raise TooManySamples(f"{n} {unit} in one request; the limit is {limit}: split it", n=n, limit=limit)

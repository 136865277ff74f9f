"""Protocol of the receiver of events of keys and certificates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class AuthEvents(Protocol):
    """Receiver of the events of watched files. Called on a thread."""

    def on_keys_read(self, names: Sequence[str], problem: str | None) -> None:
        """Record a change of the valid keys, or of the problem with their file."""
        ...

    def on_certificate_read(self, problem: str | None) -> None:
        """Record that the certificate was read again; `problem`: why the new one is invalid and the previous one stays in use."""
        ...

"""Events of keys and certificates, and the protocol of what is notified of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class AuthEvents(Protocol):
    """Is notified when a watched file was read again; called on a thread."""

    def on_keys_read(self, names: Sequence[str], problem: str | None) -> None:
        """The valid keys have changed, or what is wrong with their file."""
        ...

    def on_certificate_read(self, problem: str | None) -> None:
        """The certificate was read again; `problem`: why it is no good, and the one before is kept."""
        ...

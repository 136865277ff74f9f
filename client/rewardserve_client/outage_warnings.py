"""Decide when a client warns that no server replies: after some seconds, then at growing intervals. Pure.

Without the warning, a call to a wrong port would be silent until its deadline, minutes later.
"""

from __future__ import annotations

from collections.abc import Sequence

_SLOW_FACTOR = 6
"""Factor on the time before a warning if no attempt has failed: the reply may only be slow."""


class OutageWarnings:
    """Failed attempts and warnings of all calls of one client. Times are seconds of the caller's clock."""

    def __init__(self, urls: Sequence[str], warn_after_s: float) -> None:
        self.warn_after_s = warn_after_s
        self._urls = tuple(urls)
        self._reasons: dict[str, str] = {}
        self._answered_at = float("-inf")
        self._interval_s = warn_after_s
        self._next_at = float("-inf")

    def record_attempt(self, url: str, reason: str | None, now: float) -> None:
        """Record one attempt; `reason` is None if the server replied."""
        if reason is not None:
            self._reasons[url] = reason
            return
        self._reasons.pop(url, None)
        self._answered_at = now
        self._interval_s, self._next_at = self.warn_after_s, float("-inf")

    def warning(self, began_at: float, deadline: float, now: float) -> str | None:
        """Return the warning due now for a call that began at `began_at`, else None."""
        silent_s = now - max(began_at, self._answered_at)
        least_s = self.warn_after_s if self._reasons else _SLOW_FACTOR * self.warn_after_s
        if silent_s < least_s or now < self._next_at:
            return None
        self._next_at = now + self._interval_s
        self._interval_s *= 2
        why = "; ".join(f"{url}: {reason}" for url, reason in self._reasons.items())
        return (
            f"no reply for {silent_s:.0f} s from {why or ', '.join(self._urls)}. Is the address right, and is the server "
            f"running? Trying for another {max(0.0, deadline - now):.0f} s"
        )

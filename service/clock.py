"""The clock, passed in as an object so that tests can control time; and the time of day, for people.

Knows asyncio and nothing of this service.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """A monotonic clock in seconds, a way to wait for it, and the wall clock."""

    def now(self) -> float:
        """Return the seconds since a fixed time in the past."""
        ...

    async def wait(self, event: asyncio.Event, until: float | None) -> None:
        """Wait until `event` is set or the time is `until`; None: for the event only."""
        ...

    def unix_time(self) -> float:
        """Return the Unix time, which may jump."""
        ...


class MonotonicClock:
    """The monotonic clock of the machine; changes of the wall clock affect `unix_time` only."""

    def now(self) -> float:
        """Return `time.monotonic()`."""
        return time.monotonic()

    async def wait(self, event: asyncio.Event, until: float | None) -> None:
        """Wait until `event` is set or the time is `until`."""
        try:
            async with asyncio.timeout(None if until is None else max(0.0, until - self.now())):
                await event.wait()
        except TimeoutError:
            return

    def unix_time(self) -> float:
        """Return `time.time()`."""
        return time.time()


def utc_now() -> str:
    """Return the time of day in UTC, to the second, in ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")

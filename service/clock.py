"""The time, handed in, so that a test can hold it still.

Knows asyncio and nothing of this service.
"""

from __future__ import annotations

import asyncio
import time
from typing import Protocol


class Clock(Protocol):
    """Seconds that only grow, and a way to wait for them."""

    def now(self) -> float:
        """Seconds since some moment in the past."""
        ...

    async def wait(self, event: asyncio.Event, until: float | None) -> None:
        """Return when `event` is set or `until` has come; without `until`, only for the event."""
        ...


class MonotonicClock:
    """The clock of the machine; adjustments of its wall time do not reach it."""

    def now(self) -> float:
        """`time.monotonic`."""
        return time.monotonic()

    async def wait(self, event: asyncio.Event, until: float | None) -> None:
        """Return when `event` is set or `until` has come."""
        try:
            async with asyncio.timeout(None if until is None else max(0.0, until - self.now())):
                await event.wait()
        except TimeoutError:
            return

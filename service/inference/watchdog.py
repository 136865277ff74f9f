"""Detect a hanging scorer: a forward that takes longer than the timeout.

A forward cannot be interrupted. The server can only report it, refuse requests meanwhile, and be restarted when it does
not come back. Pure: the time is passed in. Knows no threads and no requests.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

ScorerState = Literal["healthy", "hanging", "lost"]
"""`hanging`: a forward takes too long, but may still end. `lost`: it hangs for so long that only a restart of the process helps."""

LOST_AFTER = 3
"""Multiples of the timeout after which a hanging scorer counts as lost: a slow forward may still end before."""

_POLLS_PER_TIMEOUT = 10
_MAX_GAP_POLLS = 2
"""Poll intervals; a longer gap means that the process was suspended, or its event loop was blocked."""


@dataclass(frozen=True, slots=True)
class Watchdog:
    """Watchdog of one scorer. `timeout_s` is for one forward alone at the scorer; infinite: no forward counts as hanging.

    `observed_s` is the watchdog's clock: how long it has observed the scorer. A process that is suspended, or whose event loop is
    blocked, cannot notice the end of a forward meanwhile, so at most `_MAX_GAP_POLLS` intervals of such a gap count.
    """

    timeout_s: float
    observed_s: float = 0.0
    last_observed_at: float = math.inf

    @property
    def poll_interval_s(self) -> float:
        """Seconds between two polls, and the most by which a hang is detected late."""
        return self.timeout_s / _POLLS_PER_TIMEOUT

    def observed_at(self, now: float) -> Watchdog:
        """The watchdog after a poll at this time."""
        passed_s = min(max(0.0, now - self.last_observed_at), _MAX_GAP_POLLS * self.poll_interval_s)
        return replace(self, observed_s=self.observed_s + passed_s, last_observed_at=now)

    def state(self, started: Iterable[float], concurrency: int) -> ScorerState:
        """State of the scorer, from the values of `observed_s` at which its forwards began: each may wait for all others."""
        age_s = self.observed_s - min(started, default=math.inf)
        if age_s < self.timeout_s * concurrency:
            return "healthy"
        return "hanging" if age_s < LOST_AFTER * self.timeout_s * concurrency else "lost"

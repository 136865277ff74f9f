"""Whether the scorer hangs: a forward is under way for longer than anybody should wait for it.

A forward cannot be interrupted. All that can be done is to say so, to let nobody wait for it, and to have the process
started anew when it does not come back. Pure: whoever asks says what time it is. Knows no threads and no callers.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

ScorerState = Literal["well", "hanging", "lost"]
"""`hanging`: nothing is scored, which may pass. `lost`: it has lasted so long that only another process can help."""

LOST_AFTER = 3
"""Times the timeout: a slow forward may still come back before."""

_LOOKS = 10
_LONGEST_GAP = 2
"""Looks: who comes this much later than it meant to has been asleep."""


@dataclass(frozen=True, slots=True)
class Watchdog:
    """`timeout_s` is for one forward that has the scorer for itself; infinite: nothing ever hangs.

    `awake_s` is its own clock: how long it has watched. A process that is suspended, or whose event loop is held up,
    cannot have seen a forward end meanwhile, so at most `_LONGEST_GAP` looks of such a time count.
    """

    timeout_s: float
    awake_s: float = 0.0
    looked_at: float = math.inf

    @property
    def look_every_s(self) -> float:
        """How often to look. A hang is seen so much late at most."""
        return self.timeout_s / _LOOKS

    def looks(self, now: float) -> Watchdog:
        """It looks, at this time."""
        passed_s = min(max(0.0, now - self.looked_at), _LONGEST_GAP * self.look_every_s)
        return replace(self, awake_s=self.awake_s + passed_s, looked_at=now)

    def state(self, begun: Iterable[float], concurrency: int) -> ScorerState:
        """How the scorer is, when forwards began at these times of `awake_s`: each may wait for all others at a time."""
        age_s = self.awake_s - min(begun, default=math.inf)
        if age_s < self.timeout_s * concurrency:
            return "well"
        return "hanging" if age_s < LOST_AFTER * self.timeout_s * concurrency else "lost"

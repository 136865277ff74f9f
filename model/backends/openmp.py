"""Compute threads that wait for one another, but not for long with the core held.

torch's OpenMP threads spin between two products. Where somebody else needs a core (a neighbour, a CPU quota), they spin
while the one they wait for does not run. A short spin costs a lone row a little on idle cores and saves a batch beside
others most of its time (docs/decisions/engine.md).
"""

from __future__ import annotations

import os

_SPINS = "5000"  # of 300,000 by default
_OPERATORS_OWN = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def limit_spinning() -> None:
    """To be called before torch is imported, whose OpenMP reads this once. What the operator has set stays."""
    if not any(name in os.environ for name in _OPERATORS_OWN):
        os.environ["GOMP_SPINCOUNT"] = _SPINS

"""Limit the time that OpenMP threads spin while they wait for one another.

torch's OpenMP threads spin between two products. Where another process or a CPU quota takes a core, they spin while the thread
they wait for does not run. A short spin costs a single row a little on idle cores and saves most of the time of a batch on
busy cores (docs/decisions/engine.md).
"""

from __future__ import annotations

import os

_SPINS = "5000"  # of 300,000 by default
_OPERATOR_VARIABLES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def limit_spinning() -> None:
    """Set the spin count, unless the operator has set one. Call it before the import of torch, whose OpenMP reads it once."""
    if not any(name in os.environ for name in _OPERATOR_VARIABLES):
        os.environ["GOMP_SPINCOUNT"] = _SPINS

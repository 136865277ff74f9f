"""`python -m tests.trackers.install`: the environment of `make test-trackers`, made once; prints its Python.

The optional packages of training: trackers, Optuna, bitsandbytes. MLflow whole, as its users have it; the extra has its client
alone.
"""

from __future__ import annotations

import sys

from benchmarks.peers.install import environment, same_libraries
from tests.support.environments import project, run_and_print

_OPTIONAL = ("wandb", "trackio", "qlora", "sweep")


def main() -> int:
    """The exit code."""
    optional = [each for extra in _OPTIONAL for each in project(extra=extra)]
    wanted = [*project("pytest", "hypothesis", extra="train"), *optional, "mlflow>=3.0", *same_libraries()]
    return run_and_print("the trackers", lambda: environment("trackers", list(dict.fromkeys(wanted))))


if __name__ == "__main__":
    sys.exit(main())

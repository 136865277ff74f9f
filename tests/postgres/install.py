"""`python -m tests.postgres.install`: the environment of `make test-postgres`, made once; prints its Python.

The driver of Postgres with what this project and its tests need beside it, on the torch and the transformers that are here.
"""

from __future__ import annotations

import sys

from benchmarks.peers.install import environment, same_libraries
from rewardserve.model.default.base_model import PACKAGE
from tests.support.environments import project, run_and_print


def main() -> int:
    """The exit code."""
    wanted = [*project("pytest", "hypothesis", "jsonschema", extra="postgres"), *same_libraries()]
    return run_and_print("the driver of Postgres", lambda: environment("postgres", wanted, alone=[PACKAGE]))


if __name__ == "__main__":
    sys.exit(main())

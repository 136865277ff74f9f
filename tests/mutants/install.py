"""`python -m tests.mutants.install`: the environment of `make test-mutants`, made once; prints its Python."""

from __future__ import annotations

import sys

from benchmarks.peers.install import environment, same_libraries
from rewardserve.model.default.base_model import PACKAGE
from tests.support.environments import project, run_and_print


def main() -> int:
    """The exit code."""
    wanted = [*project("", extra="train"), *same_libraries(), "mutmut==3.8.1"]
    return run_and_print("mutmut", lambda: environment("mutmut", wanted, (PACKAGE,)))


if __name__ == "__main__":
    sys.exit(main())

"""`python -m tests.ray_serve.install`: the environment of `make test-ray`, made once; prints its Python.

Ray Serve with what this project and its tests need beside it, on the torch and the transformers that are here.
"""

from __future__ import annotations

import sys

from benchmarks.peers.install import environment, same_libraries
from rewardserve.model.default.base_model import PACKAGE
from tests.support.environments import project, run_and_print

RAY = "ray[serve]==2.60.0"


def main() -> int:
    """The exit code."""
    wanted = [*project("pytest", "hypothesis"), *same_libraries(), RAY]
    return run_and_print("Ray", lambda: environment("ray_serve", wanted, alone=[PACKAGE]))


if __name__ == "__main__":
    sys.exit(main())

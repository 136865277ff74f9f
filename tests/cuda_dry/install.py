"""`python -m tests.cuda_dry.install`: the environment of `make test-cuda-dry`, made once; prints its Python.

The CUDA build of torch, which imports without a driver, and the library versions of this checkout beside it.
"""

from __future__ import annotations

import sys

from benchmarks.peers.install import environment, same_libraries
from rewardserve.model.default.base_model import PACKAGE
from tests.support.environments import project, run_and_print


def main() -> int:
    """The exit code."""
    wanted = [*project("pytest", "hypothesis", extra="train"), *same_libraries()]
    return run_and_print(
        "the CUDA build of torch", lambda: environment("cuda-dry", wanted, (PACKAGE,), local_builds=False)
    )


if __name__ == "__main__":
    sys.exit(main())

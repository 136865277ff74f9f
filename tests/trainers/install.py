"""`python -m tests.trainers.install`: the environment of `make test-trainers`, made once; prints its Python.

TRL with all that it needs. OpenRLHF, verl and LLaMA-Factory without what they need for GPUs: their HTTP clients import
without it, and nothing else of them is used.
"""

from __future__ import annotations

import sys

from benchmarks.peers.install import environment, same_libraries
from tests.support.environments import project, told

_TESTS = ("pytest", "hypothesis", "aiohttp", "orjson", "requests")
_WITH_THEIR_OWN = ("trl==1.16.0", "ray", "tensordict", "omegaconf", "hydra-core", "codetiming")
_ALONE = ("openrlhf==0.11.2", "verl==0.9.1", "llamafactory==0.9.5")


def main() -> int:
    """The exit code."""
    wanted = [*project(*_TESTS, extra="train"), *same_libraries(), *_WITH_THEIR_OWN]
    return told("the trainers", lambda: environment("trainers", wanted, alone=_ALONE))


if __name__ == "__main__":
    sys.exit(main())

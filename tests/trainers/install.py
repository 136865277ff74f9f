"""`python -m tests.trainers.install`: the environment of `make test-trainers`, made once; prints its Python.

TRL with all that it needs. OpenRLHF, verl and LLaMA-Factory without what they need for GPUs: their HTTP clients import
without it, and nothing else of them is used. NeMo-Gym with what its servers and its simple agent import; its wheel asks for
Python 3.13.14, and its code compiles and runs here with 3.11.
"""

from __future__ import annotations

import sys

from benchmarks.peers.install import environment, same_libraries
from tests.support.environments import project, run_and_print

_TESTS = ("pytest", "hypothesis", "aiohttp", "orjson", "requests", "openai")
_WITH_THEIR_OWN = ("trl==1.16.0", "ray", "tensordict", "omegaconf", "hydra-core", "codetiming")
_ALONE = ("openrlhf==0.11.2", "verl==0.9.1", "llamafactory==0.9.5")
_GYM = ("anthropic<=0.109.2", "itsdangerous", "devtools", "yappi", "pydot", "pandas", "scipy", "wandb")
_GYM_ALONE, _GYM_PYTHON = ("nemo-gym==0.7.0",), "3.13.14"


def main() -> int:
    """The exit code."""
    wanted = [*project(*_TESTS, extra="train"), *same_libraries(), *_WITH_THEIR_OWN, *_GYM]
    return run_and_print(
        "the trainers", lambda: environment("trainers", wanted, alone=_ALONE, newer={_GYM_PYTHON: _GYM_ALONE})
    )


if __name__ == "__main__":
    sys.exit(main())

"""`python -m tests.trainers.install`: the environment of `make test-trainers`, made once; prints its Python.

TRL with all that it needs. OpenRLHF, verl and LLaMA-Factory without what they need for GPUs: their HTTP clients import
without it, and nothing else of them is used.
"""

from __future__ import annotations

import sys
import tomllib
from importlib.metadata import version

from benchmarks.peers.install import ROOT, NotInstalled, environment

_TESTS = ("pytest", "hypothesis", "aiohttp", "orjson", "requests")
_WITH_THEIR_OWN = ("trl==1.16.0", "ray", "tensordict", "omegaconf", "hydra-core", "codetiming")
_ALONE = ("openrlhf==0.11.2", "verl==0.9.1", "llamafactory==0.9.5")


def requirements() -> list[str]:
    """What the project and its tests need, with the torch and the transformers that are here, and the trainers."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    tests = [name for name in extras["dev"] if name.startswith(_TESTS)]
    ours = [f"{name}=={version(name).partition('+')[0]}" for name in ("torch", "transformers")]
    return [*project["dependencies"], *extras["train"], *tests, *ours, *_WITH_THEIR_OWN]


def main() -> int:
    """The exit code."""
    try:
        python = environment("trainers", requirements(), alone=_ALONE)
    except NotInstalled as error:
        print(f"the trainers cannot be installed here: {error}", file=sys.stderr)
        return 1
    print(python)
    return 0


if __name__ == "__main__":
    sys.exit(main())

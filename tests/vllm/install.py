"""`python -m tests.vllm.install`: the environment of `make test-vllm`, made once; prints its Python.

It is the one in which the peer benchmark runs vLLM, with what this project needs beside it. vLLM's own torch and transformers
stay as they are: where our lower bounds forbid them, the installer says so.
"""

from __future__ import annotations

import sys
import tomllib

from benchmarks.peers.install import ROOT, NotInstalled, add
from benchmarks.peers.vllm import PEER
from model.default.trunk import PACKAGE

_TESTS = ("pytest", "hypothesis")


def requirements() -> list[str]:
    """What the project needs to run, and what its tests need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    tests = [name for name in project["optional-dependencies"]["dev"] if name.startswith(_TESTS)]
    return [*project["dependencies"], *tests]


def main() -> int:
    """The exit code."""
    try:
        python = add(PEER, requirements(), alone=[PACKAGE])
    except NotInstalled as error:
        print(f"vLLM cannot be installed here: {error}", file=sys.stderr)
        return 1
    print(python)
    return 0


if __name__ == "__main__":
    sys.exit(main())

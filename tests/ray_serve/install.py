"""`python -m tests.ray_serve.install`: the environment of `make test-ray`, made once; prints its Python.

Ray Serve with what this project and its tests need beside it, on the torch and the transformers that are here.
"""

from __future__ import annotations

import sys
import tomllib

from benchmarks.peers.install import ROOT, NotInstalled, environment, same_libraries
from model.default.trunk import PACKAGE

RAY = "ray[serve]==2.60.0"
_TESTS = ("pytest", "hypothesis")


def requirements() -> list[str]:
    """What the project needs to run, what its tests need, and Ray."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    tests = [name for name in project["optional-dependencies"]["dev"] if name.startswith(_TESTS)]
    return [*project["dependencies"], *tests, *same_libraries(), RAY]


def main() -> int:
    """The exit code."""
    try:
        python = environment("ray_serve", requirements(), alone=[PACKAGE])
    except NotInstalled as error:
        print(f"Ray cannot be installed here: {error}", file=sys.stderr)
        return 1
    print(python)
    return 0


if __name__ == "__main__":
    sys.exit(main())

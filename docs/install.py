"""`python -m docs.install`: the environment of `make docs`, made once; prints its Python."""

from __future__ import annotations

import sys

from benchmarks.peers.install import environment
from tests.support.environments import run_and_print

BUILDER = "mkdocs-material==9.8.2"


def main() -> int:
    """Install; the exit code."""
    return run_and_print("the builder of the site", lambda: environment("docs", [BUILDER]))


if __name__ == "__main__":
    sys.exit(main())

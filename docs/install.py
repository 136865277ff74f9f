"""`python -m docs.install`: the environment of `make docs`, made once; prints its Python."""

from __future__ import annotations

import sys

from benchmarks.peers.install import environment
from tests.support.environments import told

BUILDER = "mkdocs-material==9.8.2"


def main() -> int:
    """The exit code."""
    return told("the builder of the site", lambda: environment("docs", [BUILDER]))


if __name__ == "__main__":
    sys.exit(main())

"""`python -m tests.fuzz.install`: the environment of schemathesis, made once; prints its command line program."""

from __future__ import annotations

import sys

from benchmarks.peers.install import HOME, environment
from tests.support.environments import run_and_print

PROGRAM = HOME / "fuzz" / "bin" / "st"


def main() -> int:
    """The exit code."""
    return run_and_print("schemathesis", lambda: environment("fuzz", ["schemathesis>=4.32,<5"]).with_name(PROGRAM.name))


if __name__ == "__main__":
    sys.exit(main())

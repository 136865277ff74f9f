"""`python -m tests.fuzz.install`: the environment of schemathesis, made once; prints its command line program."""

from __future__ import annotations

import sys

from benchmarks.peers.install import HOME, NotInstalled, environment

PROGRAM = HOME / "fuzz" / "bin" / "st"


def main() -> int:
    """The exit code."""
    try:
        environment("fuzz", ("schemathesis>=4.32,<5",))
    except NotInstalled as error:
        print(f"schemathesis cannot be installed here: {error}", file=sys.stderr)
        return 1
    print(PROGRAM)
    return 0


if __name__ == "__main__":
    sys.exit(main())

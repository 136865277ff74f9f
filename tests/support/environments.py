"""Common parts of the environments of `make test-docker`, `test-ray` and others. Each is created once, by its `install`."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

from benchmarks.peers.install import ROOT, NotInstalled


def project(*tools: str, extra: str = "") -> list[str]:
    """Requirements of the project, of its development tools with these prefixes, and of one of its extras.

    The project itself, which the tools name for another extra, is left out: it is in no index.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return [
        *project["dependencies"],
        *extras.get(extra, ()),
        *(name for name in extras["dev"] if name.startswith(tools) and not name.startswith(project["name"])),
    ]


def run_and_print(what: str, make: Callable[[], Path]) -> int:
    """Print the environment that `make` has created, as the last line. Return the exit code."""
    try:
        made = make()
    except NotInstalled as error:
        print(f"{what} cannot be installed here: {error}", file=sys.stderr)
        return 1
    print(made)
    return 0

"""What the environments of `make test-docker`, `test-ray` and the like have in common. Each is made once, by its `install`."""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Callable
from pathlib import Path

from benchmarks.peers.install import ROOT, NotInstalled


def project(*tools: str, extra: str = "") -> list[str]:
    """What the project needs to run, those of its development tools that begin so, and what one of its extras is of.

    The project itself, by which the tools name another extra, is in no index.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    return [
        *project["dependencies"],
        *extras.get(extra, ()),
        *(name for name in extras["dev"] if name.startswith(tools) and not name.startswith(project["name"])),
    ]


def run_and_print(what: str, make: Callable[[], Path]) -> int:
    """Print what `make` has made, as the last line. The exit code."""
    try:
        made = make()
    except NotInstalled as error:
        print(f"{what} cannot be installed here: {error}", file=sys.stderr)
        return 1
    print(made)
    return 0

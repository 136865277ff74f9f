"""`python -m tests.install_digest`: print a digest of everything that an installation into `.venv` depends on.

`make` compares it with the one of the last installation: an edit of pyproject.toml that concerns a linter, or a checkout that
only changes the time of a file, installs nothing. Standard library only, as it runs before there is an environment.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECTS = ("pyproject.toml", "client/pyproject.toml")
KERNELS = tuple(f"model/backends/native/{name}" for name in ("amx.c", "avx512.c", "kernels.h"))
FILES = ("setup.py", "constraints.txt", *KERNELS, "model/default/weights.txt")


def install_digest(root: Path = ROOT) -> str:
    """The digest: of the sections of each project that describe what is installed, of the other files, and of Python's version."""
    found = hashlib.sha256(sys.version.encode())
    for name in PROJECTS:
        project = tomllib.loads((root / name).read_text(encoding="utf-8"))
        tools = project.pop("tool", {})
        # Also the path: an editable installation leads to this folder.
        found.update(json.dumps([str(root / name), project, tools.get("setuptools")], sort_keys=True).encode())
    for name in FILES:
        found.update((root / name).read_bytes())
    return found.hexdigest()


if __name__ == "__main__":
    print(install_digest())

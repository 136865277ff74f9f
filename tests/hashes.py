"""`python -m tests.hashes` (`make hashes`): write constraints-hashes.txt, the packages of the CPU image, each by its SHA-256.

Takes the packages that pip would install here, with the versions of constraints.txt; writes names, versions and digests, no URLs.
The file holds for this platform and Python; pip takes it with `--require-hashes`.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGET = ROOT / "constraints-hashes.txt"
HEADER = """\
# Written by `make hashes` for Python 3.11 on Linux x86_64 with torch for the CPU. Never by hand.
# pip install --require-hashes --no-deps --requirement constraints-hashes.txt
"""


def main() -> None:
    """Write the file."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        command = [
            sys.executable,
            "-m",
            "pip",
            "install",
            "--quiet",
            "--dry-run",
            "--ignore-installed",
            "--constraint",
            "constraints.txt",
        ]
        subprocess.run([*command, "--report", str(report), "."], cwd=ROOT, check=True)
        TARGET.write_text(HEADER + "".join(sorted(lines(json.loads(report.read_text())), key=str.lower)))


def lines(report: dict) -> list[str]:
    """A requirement for every file of pip's report, without our package."""
    found = []
    for each in report["install"]:
        name, version = each["metadata"]["name"], each["metadata"]["version"]
        if name != "rewardserve":
            found.append(
                f"{name}=={version} --hash=sha256:{each['download_info']['archive_info']['hashes']['sha256']}\n"
            )
    return found


if __name__ == "__main__":
    main()

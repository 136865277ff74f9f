"""`python -m tests.dependencies`: check the installed packages for known vulnerabilities. A part of `make check`.

pip-audit queries PyPI. A vulnerability fails the check. Without an answer, or without pip-audit, the check is skipped with a
message, so that the other checks pass on a machine without a network.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

TIMEOUT_S = 25.0
OWN = {"rewardserve", "rewardserve-client"}


def main() -> int:
    """Print the result of the audit. Return the exit code."""
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as listed:
        listed.write("\n".join(installed()))
        listed.flush()
        said = ask(
            [str(Path(sys.executable).with_name("pip-audit")), "--no-deps", "--disable-pip", "-r", listed.name, "--timeout", "10",
             "--progress-spinner", "off", "--format", "json"]
        )  # fmt: skip
    if isinstance(said, str):
        print(f"dependency audit SKIPPED: {said}")
        return 0
    code, lines = verdict(said)
    print("\n".join(lines))
    return code


def installed() -> list[str]:
    """Name and version of all packages of this environment but ours; local builds by their public version."""
    found = {d.metadata["Name"].lower(): d.version.partition("+")[0] for d in distributions() if d.metadata["Name"]}
    return sorted(f"{name}=={version}" for name, version in found.items() if name not in OWN)


def ask(command: Sequence[str]) -> list[dict[str, Any]] | str:
    """Run pip-audit. Return its entry for every package, or the reason why there is none."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
        return list(json.loads(done.stdout)["dependencies"])
    except FileNotFoundError:
        return "pip-audit is not installed (make setup does that)"
    except subprocess.TimeoutExpired:
        return f"no answer within {TIMEOUT_S:g} s"
    except (ValueError, KeyError, TypeError):
        return f"pip-audit failed: {(done.stderr.strip().splitlines() or ['no output'])[-1][:200]}"


def verdict(said: Sequence[dict[str, Any]]) -> tuple[int, list[str]]:
    """Return the exit code, and the lines of the report."""
    known = [each for each in said if "vulns" in each]
    if not known:
        return 0, [f"dependency audit SKIPPED: the index has none of {len(said)} packages"]
    bad = [
        f"{each['name']} {each['version']}: {vuln['id']}, fixed in {', '.join(vuln.get('fix_versions') or ['no version'])}"
        for each in known
        for vuln in each["vulns"]
    ]
    unknown = len(said) - len(known)
    counted = f"{len(known)} packages looked up" + (f", {unknown} unknown to the index" if unknown else "")
    if bad:
        return 1, [f"dependency audit FAILED: {len(bad)} known vulnerabilities ({counted})", *bad]
    return 0, [f"dependency audit: no known vulnerabilities ({counted})"]


if __name__ == "__main__":
    sys.exit(main())

"""`python -m k8s.rules`: the alert rules of monitoring/ as a PrometheusRule, for the operator to read.

Copies text: what an alert says and where it fires is decided in monitoring/prometheus/rules.
"""

from __future__ import annotations

import sys
from pathlib import Path
from textwrap import dedent, indent

ROOT = Path(__file__).resolve().parent
SOURCES = tuple(ROOT.parent / "monitoring/prometheus/rules" / name for name in ("service.yml", "tripwires.yml"))
TARGET = ROOT / "components/monitoring/prometheusrule.yaml"

_HEAD = """\
# Written by `make k8s-rules` from monitoring/prometheus/rules. Change those, and write this file again.
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: rewardserve
  labels: {app.kubernetes.io/name: rewardserve}
spec:
  groups:
"""


def text() -> str:
    """Write the text of `TARGET`."""
    return _HEAD + "".join(indent(_groups(path), "    ") for path in SOURCES)


def _groups(path: Path) -> str:
    """Read the groups of a rules file of Prometheus, without indentation."""
    _, found, groups = path.read_text(encoding="utf-8").partition("\ngroups:\n")
    if not found:
        raise SystemExit(f"{path.name} has no line `groups:`")
    return dedent(groups)


def main() -> int:
    """The exit code."""
    TARGET.write_text(text(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

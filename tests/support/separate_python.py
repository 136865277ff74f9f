"""Run `tests/support/rewardbench.py` in a separate Python, which cannot import this repository."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SCRIPT = Path(__file__).with_name("rewardbench.py")


def scored_in_separate_python(checkpoint: Path, rows: Sequence[dict[str, Any]], folder: Path) -> dict[str, Any]:
    """Accuracy and scores of pairs of conversations, by plain transformers."""
    pairs = folder / "elsewhere.jsonl"
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-I", str(SCRIPT), str(checkpoint), str(pairs)],
        check=False, capture_output=True, text=True, cwd=folder, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found

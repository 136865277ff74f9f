"""`rewardserve demo` as a newcomer runs it, as fast as it goes."""

from __future__ import annotations

import re
import subprocess
import sys


def test_the_hacked_run_pages_and_the_healthy_one_does_not(tmp_path):
    command = [
        sys.executable,
        "-m",
        "rewardserve",
        "demo",
        "--no-browser",
        "--exit",
        "--minutes=0",
        f"--state-dir={tmp_path}",
    ]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == 0, ended.stderr
    assert re.search(r"console: http://127\.0\.0\.1:\d+/console", ended.stdout)
    page = re.search(r"step (\d+): hacked is page: (.*)", ended.stdout)
    assert page is not None, ended.stdout
    assert int(page.group(1)) > 12
    assert "health, education and the economy" in page.group(2)
    assert not re.search(r"healthy is (page|warn)", ended.stdout)
    exported = subprocess.run(
        [sys.executable, "-m", "rewardserve", "export-labels", str(tmp_path / "review.db"), "--run=hacked"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (exported.returncode, exported.stdout) == (0, "")
    assert "0 labelled pairs" in exported.stderr

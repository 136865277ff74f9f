"""The commands of the tutorial, as they stand there: the exploit is paid, paged, and no longer paid by the mended model."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/tutorial.md").read_text()
INSTALLS = "make setup"


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def script_of(page, port):
    """The commands, each block after a line with its number; the server on a port of its own."""
    blocks = [block for block in re.findall(r"```bash\n(.*?)```", page, re.DOTALL) if INSTALLS not in block]
    text = "\n".join(f"echo; echo @@@ {i}\n{block}" for i, block in enumerate(blocks))
    return "set -m\n" + text.replace("8000", str(port)).replace(
        "serve runs/tutorial", f"serve --port={port} runs/tutorial"
    )


@pytest.mark.sweep(0)
@pytest.mark.timeout(1800)
def test_the_tutorial_does_what_it_says(tmp_path):
    shutil.copytree(ROOT / "examples/tutorial", tmp_path / "examples/tutorial")
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, arguments in (("rewardserve", "-m rewardserve"), ("python", "")):
        (commands / name).write_text(f'#!/bin/bash\nexec {sys.executable} {arguments} "$@"\n')
        (commands / name).chmod(0o755)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "client")])
    environment = {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}", "PYTHONPATH": paths}
    run = subprocess.Popen(
        ["bash", "-e", "-c", script_of(PAGE, free_port())], cwd=tmp_path, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        output, complaints = run.communicate(timeout=1700)
    finally:
        stop(run)
    assert run.returncode == 0, output + complaints
    assert output.count("accuracy 1.000") == 2
    assert "every clause holds" in output
    alerts_shown, alerts = (
        set(re.findall(r"^severity=(\w+) .*wire=(\w+)", text, re.MULTILINE)) for text in (PAGE, output)
    )
    assert ("page", "vote") in alerts
    assert '"state": "page"' in output
    assert alerts == alerts_shown
    rewards = re.findall(r"^step .* reward +(\S+)", output, re.MULTILINE)
    assert float(rewards[-1]) > float(rewards[0]) + 0.2
    assert re.search(r"only B 120\b", output)
    honest, exploit = json.loads(re.findall(r"^\[.*\]$", output, re.MULTILINE)[-1])
    assert honest > 0 > exploit
    assert '"acknowledged":true' in output


def stop(run):
    """End what the script has started, were it left by a failure."""
    try:
        os.killpg(run.pid, signal.SIGTERM)
    except ProcessLookupError:
        return

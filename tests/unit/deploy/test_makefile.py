"""Targets whose tools are missing end with one line that names the package, and not with success."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from tests.support.deploy import ROOT

TOOLS = ("bash", "env", "make", "mkdir", "python3", "tail", "test", "touch")


@pytest.fixture
def path(tmp_path):
    """A search path with no docker, no Prometheus and nothing else that is not needed to start."""
    for tool in TOOLS:
        (tmp_path / tool).symlink_to(shutil.which(tool))
    return str(tmp_path)


@pytest.mark.parametrize(
    ("target", "package"),
    [("test-docker", "docker.io"), ("image", "docker.io"), ("up", "docker.io"), ("drill", "prometheus-alertmanager")],
)
def test_a_target_without_its_tools_names_the_package_and_fails(path, target, package):
    command = ["make", "-o", "setup", "-o", "secrets", target, "DRILL=--data nowhere"]
    done = subprocess.run(
        command, cwd=ROOT, env={"PATH": path}, capture_output=True, text=True, timeout=60, check=False
    )
    said = [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("make")]
    assert done.returncode != 0
    assert len(said) == 1, said
    assert package in said[0]


def test_caches_of_tools_are_not_in_the_repository():
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert not [name for name in tracked if name.startswith((".schemathesis/", ".hypothesis/", ".pytest_cache/"))]
    ignored = subprocess.run(["git", "check-ignore", ".schemathesis/x"], cwd=ROOT, capture_output=True, check=False)
    assert ignored.returncode == 0

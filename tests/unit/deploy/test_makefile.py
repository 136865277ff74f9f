"""Targets whose tools are missing end with one line that names the package, and not with success."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

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
    [
        ("test-docker", "docker.io"),
        ("image", "docker.io"),
        ("up", "docker.io"),
        ("image-digests", "docker.io"),
        ("drill", "prometheus-alertmanager"),
    ],
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


IMAGES = ("prom/prometheus", "prom/alertmanager", "grafana/grafana", "python:3.11-slim")


def digests(path, docker):
    """What `make image-digests` says with this `docker`, and its exit code."""
    for tool in ("sed", "cat"):
        (Path(path) / tool).symlink_to(shutil.which(tool))
    (Path(path) / "docker").write_text(f"#!/bin/bash\n{docker}\n")
    (Path(path) / "docker").chmod(0o755)
    done = subprocess.run(
        ["make", "image-digests"], cwd=ROOT, env={"PATH": path}, capture_output=True, text=True, timeout=60, check=False
    )
    return done.returncode, [line for line in (done.stdout + done.stderr).splitlines() if not line.startswith("make")]


def test_digests_without_buildx_are_one_line_that_names_the_package(path):
    code, output = digests(path, 'echo "docker: unknown command: docker $1" >&2; exit 1')
    assert code != 0
    assert len(output) == 1
    assert "docker-buildx" in output[0]


def test_digests_of_a_registry_that_cannot_be_reached_are_one_line_with_image_and_reason(path):
    code, output = digests(
        path, '[ "$2" = version ] && exit; echo "pulling" >&2; echo "ERROR: dial tcp: no such host" >&2; exit 1'
    )
    assert code != 0
    (line,) = output
    assert line.startswith("image-digests: prom/prometheus:")
    assert "ERROR: dial tcp: no such host" in line


def test_digests_are_lines_for_env_and_for_make_image(path):
    code, output = digests(path, '[ "$2" = version ] && exit; echo sha256:$(printf 0%.0s {1..64})')
    assert code == 0
    assert [line.partition("=")[0] for line in output] == [
        "PROMETHEUS_IMAGE",
        "ALERTMANAGER_IMAGE",
        "GRAFANA_IMAGE",
        "BASE",
    ]
    for line, image in zip(output, IMAGES, strict=True):
        assert f"={image}" in line
        assert line.endswith("@sha256:" + "0" * 64)


def test_an_answer_that_is_no_digest_is_not_printed_as_one(path):
    code, output = digests(path, '[ "$2" = version ] && exit; echo "<no value>"')
    assert code != 0
    assert len(output) == 1


@pytest.mark.parametrize("of", ["VARIANT=cuda", "VARIANT=vllm", "TARGET=train"])
def test_an_image_without_hashes_is_not_built_by_hash(path, of):
    (Path(path) / "docker").write_text("#!/bin/bash\necho built\n")
    (Path(path) / "docker").chmod(0o755)
    done = subprocess.run(
        ["make", "image", "HASHED=1", of],
        cwd=ROOT,
        env={"PATH": path},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "built" not in done.stdout
    assert "HASHED=1 is for the image that serves on a CPU" in done.stderr


def test_caches_of_tools_are_not_in_the_repository():
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert not [name for name in tracked if name.startswith((".schemathesis/", ".hypothesis/", ".pytest_cache/"))]
    ignored = subprocess.run(["git", "check-ignore", ".schemathesis/x"], cwd=ROOT, capture_output=True, check=False)
    assert ignored.returncode == 0


def fake_python(folder, version):
    """An interpreter that says that it has this version, and makes an environment of itself."""
    python = folder / f"python{version[1]}"
    check = f"import sys; sys.version_info = {version}; exec(sys.argv[1])"
    python.write_text(
        f"""#!/bin/bash
case "$1 $2" in
  "-c "*) exec {sys.executable} -c "{check}" "$2" ;;
  "-m venv") mkdir -p "$4/bin" && cp "$0" "$4/bin/python" ;;
  "-m tests.install_digest") echo digest ;;
esac
"""
    )
    python.chmod(0o755)
    return python


def set_up(python, venv):
    command = ["make", "setup", f"PYTHON={python}", f"VENV={venv}"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_a_python_that_is_too_old_is_refused_in_words_and_the_next_one_is_taken(tmp_path):
    venv = tmp_path / "venv"
    for version in ((3, 10, 13), (3, 14, 0)):
        refused = set_up(fake_python(tmp_path, version), venv)
        assert refused.returncode != 0
        assert f"Python 3.11 to 3.13 is needed; this is 3.{version[1]}." in refused.stderr
        assert not (venv / ".ready").exists()
    for version in ((3, 12, 1), (3, 13, 0)):
        made = set_up(fake_python(tmp_path, version), venv)
        assert made.returncode == 0, made.stderr
        assert (venv / ".ready").read_text() == "digest\n"


def test_an_environment_of_a_python_that_is_too_old_is_made_again(tmp_path):
    venv = tmp_path / "venv"
    (venv / "bin").mkdir(parents=True)
    shutil.copy(fake_python(tmp_path, (3, 10, 13)), venv / "bin" / "python")
    assert set_up(fake_python(tmp_path, (3, 12, 1)), venv).returncode == 0
    assert (venv / "bin" / "python").read_bytes() == (tmp_path / "python12").read_bytes()


def test_a_setup_whose_digest_fails_leaves_no_stamp(tmp_path):
    python = fake_python(tmp_path, (3, 12, 1))
    python.write_text(python.read_text().replace("echo digest", "exit 1"))
    assert set_up(python, tmp_path / "venv").returncode != 0
    assert not (tmp_path / "venv" / ".ready").exists()


def test_an_empty_stamp_is_none_however_new_it_is(tmp_path):
    """As a full disk leaves it: whatever is there would count as an environment that is ready."""
    python, venv = fake_python(tmp_path, (3, 12, 1)), tmp_path / "venv"
    venv.mkdir()
    (venv / ".ready").touch()
    assert set_up(python, venv).returncode == 0
    assert (venv / ".ready").read_text() == "digest\n"
    assert (venv / "bin" / "python").is_file()

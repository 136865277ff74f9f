"""docker-compose.yml beside the code and the files that it speaks of. Nothing is started; `make test-docker` does that."""

from __future__ import annotations

import re

import pytest
import yaml

from rewardserve.service.cli.options import from_command_line, unknown_variables
from rewardserve.service.settings import ServeSettings
from rewardserve.training.settings.recipe import load
from tests.docker.test_compose import HEAD
from tests.support.deploy import ROOT, compose, mounted, servers, variables, with_defaults

SERVICES = compose()["services"]
LONG_RUNNING = [name for name in SERVICES if not name.startswith("train")]
DOCUMENTS = (ROOT / "docs/how-to/compose.md").read_text()


@pytest.mark.parametrize("name", servers())
def test_every_setting_of_a_server_is_one(name):
    told = {variable: str(value) for variable, value in SERVICES[name]["environment"].items()}
    assert unknown_variables(ServeSettings, told) == []


@pytest.mark.parametrize("name", servers())
def test_a_server_understands_what_it_is_told(name, monkeypatch):
    for variable, value in SERVICES[name]["environment"].items():
        monkeypatch.setenv(variable, str(with_defaults(value)))
    monkeypatch.setenv("REWARD_HOST", "0.0.0.0")  # as the image has it
    settings = from_command_line(ServeSettings, "rewardserve serve", [])
    assert str(settings.keys_file) == "/run/secrets/reward_keys"


def test_a_server_is_published_and_scraped_where_it_listens():
    port = ServeSettings(keys_file=None).port
    for service in servers().values():
        assert service["ports"] == [f"127.0.0.1:${{PORT:-{port}}}:{port}"]
    (scraped,) = yaml.safe_load((ROOT / "monitoring/compose/targets/rewardserve.yml").read_text())
    assert scraped["targets"] == [f"rewardserve:{port}"]
    assert all(service["networks"]["default"]["aliases"] == ["rewardserve"] for service in servers().values())


def test_prometheus_finds_alertmanager_where_it_listens():
    (told,) = yaml.safe_load((ROOT / "monitoring/compose/alertmanagers/alertmanager.yml").read_text())
    assert told["targets"] == ["alertmanager:9093"]
    assert SERVICES["alertmanager"]["ports"][0].endswith(":9093")


def test_grafana_finds_prometheus_where_it_listens():
    (source,) = yaml.safe_load(
        (ROOT / "monitoring/grafana/provisioning/datasources/prometheus.yml").read_text()
    )["datasources"]  # fmt: skip
    assert source["url"] == "http://prometheus:9090"
    assert SERVICES["prometheus"]["ports"][0].endswith(":9090")


@pytest.mark.parametrize("name", SERVICES)
def test_nothing_is_published_beyond_this_machine(name):
    assert all(port.startswith("127.0.0.1:") for port in SERVICES[name].get("ports", ()))


@pytest.mark.parametrize("name", SERVICES)
def test_what_is_mounted_from_the_checkout_is_there(name):
    for source, _ in mounted(SERVICES[name]):
        assert source == "./data" or (ROOT / source).exists(), f"{name} mounts {source}"


@pytest.mark.parametrize("name", SERVICES)
def test_every_container_is_careful_and_has_limits(name):
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["logging"]["options"].keys() == {"max-size", "max-file"}
    assert service["deploy"]["resources"]["limits"].keys() >= {"cpus", "memory"}
    assert "privileged" not in service
    assert service["restart"] == ("unless-stopped" if name in LONG_RUNNING else "no")


@pytest.mark.parametrize("name", SERVICES)
def test_every_image_has_a_version(name):
    image = with_defaults(SERVICES[name]["image"])
    assert re.fullmatch(r"\S+:v?\d+\.\d+\.\d+(-[a-z-]+)?", image), image


def test_a_server_has_longer_to_end_than_it_takes():
    for service in servers().values():
        drain_s = service["environment"]["REWARD_DRAIN_TIMEOUT_S"]
        assert int(service["stop_grace_period"].removesuffix("s")) > drain_s + 5, "answers being written take some more"


def test_a_server_computes_with_as_many_threads_as_it_may_have_cpus():
    for service in servers().values():
        assert service["environment"]["OMP_NUM_THREADS"] == service["deploy"]["resources"]["limits"]["cpus"]


def test_secrets_are_files_that_git_does_not_see():
    assert {each["file"] for each in compose()["secrets"].values()} == {"./secrets/keys", "./secrets/grafana-password"}
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {"/secrets/", "/.env", "/rewardserve.env"} <= set(ignored)
    for service in SERVICES.values():
        for variable, value in service.get("environment", {}).items():
            assert not re.search("PASSWORD|SECRET|TOKEN|KEY", variable) or str(value).startswith("/run/secrets/")


def test_every_variable_of_the_file_is_in_the_documents_and_none_hides_a_setting():
    for variable in variables():
        assert re.search(rf"\b{variable}\b", DOCUMENTS), variable
        assert not variable.startswith("REWARD_"), "settings of the server go into rewardserve.env"


def test_a_server_is_run_as_the_user_of_the_image():
    assert all("user" not in service for service in servers().values())


def test_the_training_of_the_tests_of_the_image_is_a_recipe():
    config = load(ROOT / "training/recipes/default.yaml", [each for each in HEAD if each != "--set"])
    assert config.model.heads == ("score",)

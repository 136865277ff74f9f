"""What docker-compose.yml mounts into Prometheus and Alertmanager, put where it mounts it, by their own tools."""

from __future__ import annotations

import shutil

import pytest

from tests.integration.monitoring.test_configuration import run
from tests.support.deploy import ROOT, compose, mounted


@pytest.fixture
def inside(tmp_path):
    """Make the files that a container of this service sees."""

    def lay(service):
        for source, target in mounted(compose()["services"][service]):
            there = tmp_path / target.lstrip("/")
            there.parent.mkdir(parents=True, exist_ok=True)
            (shutil.copytree if (ROOT / source).is_dir() else shutil.copy)(ROOT / source, there)
        return tmp_path

    return lay


def test_prometheus_finds_its_rules_its_targets_and_its_alertmanager(inside):
    config = inside("prometheus") / "etc/prometheus/prometheus.yml"
    code, output = run("promtool", "check", "config", "--lint-fatal", str(config))
    assert code == 0, output
    assert "SUCCESS: 2 rule files found" in output
    for folder, target in (("targets", "rewardserve:8000"), ("alertmanagers", "alertmanager:9093")):
        (file,) = (config.parent / folder).iterdir()
        assert target in file.read_text(), "and nothing of what a machine without Compose has"


def test_alertmanager_understands_its_file(inside):
    code, output = run("amtool", "check-config", str(inside("alertmanager") / "etc/alertmanager/alertmanager.yml"))
    assert code == 0, output


def test_grafana_finds_dashboards_where_its_provisioning_says(inside):
    seen = inside("grafana")
    told = (seen / "etc/grafana/provisioning/dashboards/rewardserve.yml").read_text()
    assert "path: /etc/grafana/dashboards" in told
    assert len(list((seen / "etc/grafana/dashboards").glob("*.json"))) == 2

"""What is shipped for Prometheus and Alertmanager, by their own tools; and what a server exports."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.service_server import TIMEOUT_S, Server

MONITORING = Path(__file__).resolve().parents[3] / "monitoring"


def run(tool, *arguments, **kwargs):
    if shutil.which(tool) is None:
        pytest.skip(f"{tool} is not installed")
    done = subprocess.run([tool, *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, check=False, **kwargs)
    return done.returncode, done.stdout + done.stderr


def test_the_configuration_of_prometheus_is_valid_with_its_rules():
    code, output = run("promtool", "check", "config", "--lint-fatal", str(MONITORING / "prometheus/prometheus.yml"))
    assert code == 0, output


def test_the_configuration_of_alertmanager_is_valid():
    code, output = run("amtool", "check-config", str(MONITORING / "alertmanager/alertmanager.yml"))
    assert code == 0, output


@pytest.mark.parametrize("severity", ["warn", "page"])
def test_every_alert_has_a_receiver(severity):
    config = f"--config.file={MONITORING / 'alertmanager/alertmanager.yml'}"
    code, output = run("amtool", "config", "routes", "test", config, f"severity={severity}", "run=ppo-7")
    assert (code, output.splitlines()[0]) == (0, "webhook")


def test_what_a_server_exports_has_nothing_to_be_said_against_it():
    flags = ("--backend=echo", "echo", "--tripwires.cpu-share=1", "--tripwires.window=16")
    with Server(*flags) as server:
        for step in range(20):
            samples = [{"prompt": "why?", "response": f"because of {step} and {i}"} for i in range(16)]
            server.client.post("/score", json={"run": "ppo-7", "step": step, "kl": 1.0, "samples": samples})
        text = server.client.get("/metrics").text
    code, output = run("promtool", "check", "metrics", input=text)
    assert (code, output) == (0, "")

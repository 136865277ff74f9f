"""The trainer's side of `make grpo`: every step of a run is in its file."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

pytest.importorskip("trl", reason="needs TRL: run `make test-trainers`")

from gym.grpo import read_stream
from tests.support.service_server import ROOT


def test_every_step_is_recorded_with_the_rewards_of_the_server(server, policy_folder, tmp_path):
    flags = {
        "policy": policy_folder, "url": server.url, "run": "grpo-recorded", "stream": tmp_path / "run.jsonl.gz", "steps": 2,
        "beta": 0.05, "learning-rate": 1e-3, "groups": 2, "group": 4, "tokens": 8,
    }  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "client"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "gym.grpo_policy", *(f"--{name}={value}" for name, value in flags.items())]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=600)
    steps = read_stream(tmp_path / "run.jsonl.gz")
    assert [step["step"] for step in steps] == [0, 1]
    for step in steps:
        assert len(step["prompts"]) == len(step["responses"]) == len(step["rewards"]) == 8
        assert len(set(step["prompts"])) == 2
        assert all(isinstance(reward, float) for reward in step["rewards"])

"""Worlds for real trainers: a policy, a reward model of ours, a live server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import checkpoints
from tests.support.service_server import Server
from tests.trainers.tiny import TEMPLATE, ByHand


@pytest.fixture(scope="session")
def reward_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint as our training writes it."""
    folder = tmp_path_factory.mktemp("reward") / "model"
    checkpoints.reward_model(folder, "qwen2", template=TEMPLATE)
    return folder


@pytest.fixture(scope="session")
def policy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model with random weights."""
    return checkpoints.language_model(tmp_path_factory.mktemp("policy") / "model", "llama", template=TEMPLATE)


@pytest.fixture(scope="session")
def by_hand(reward_folder: Path) -> ByHand:
    """The reference."""
    return ByHand(reward_folder)


@pytest.fixture(scope="session")
def server(reward_folder: Path):
    """Rewards are normalised and nothing else."""
    with Server(f"{reward_folder}", "--device=cpu", "--dtype=float32", "--shape=none") as server:
        yield server


@pytest.fixture(scope="session")
def raw_server(reward_folder: Path):
    """Rewards are raw scores."""
    flags = ("--device=cpu", "--dtype=float32", "--shape=none", "--normalize=off", "--model-aliases=rm")
    with Server(f"{reward_folder}", *flags) as server:
        yield server

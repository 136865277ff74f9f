"""Responses of the base policy and a small panel, made once."""

import numpy as np
import pytest

from gym.policy import base_policy
from gym.proxy import seed_models


@pytest.fixture(scope="package")
def base():
    return base_policy()


@pytest.fixture(scope="package")
def sampled(base):
    return base.sample(np.random.default_rng(3), np.arange(400) // 8)


@pytest.fixture(scope="package")
def models(base):
    return seed_models(base, seed=5, n_members=2, n_pairs=1_500)
